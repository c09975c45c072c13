"""What a stage minimises on a batch: the loss in the graph, and that against the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsefx.errors import TrainingError
from sparsefx.inputs.signature import LOSS
from sparsefx.problem import Kind
from sparsefx.program import Program
from sparsefx.recipe import Training
from sparsefx.train.data.batches import Encoded, known_labels
from sparsefx.train.evaluation import inputs_for, logits_name
from sparsefx.train.step.optimization import label_loss

__all__ = ["LABELS", "BatchLoss"]

LABELS = "labels"
Batch = dict[str, Tensor]
Forward = Callable[..., Mapping[str, Tensor]]


class BatchLoss:
    """Computes what is minimised.

    Args:
        stage: Name of the stage, for messages.
        settings: From the recipe.
        program: On the device where it is.
        data: Training examples.
        kind: Of the task: what the labels mean.

    Attributes:
        program: As given.
        device: Where it is.
        names: What :meth:`of` returns the values of: ``loss``, then its terms.

    Raises:
        TrainingError: There is nothing to minimise.
    """

    def __init__(
        self, stage: str, settings: Training, program: Program, data: Encoded, kind: Kind
    ) -> None:
        self.program = program
        self.device = program.device
        self._kind = kind
        self._bf16 = settings.precision == "bf16"
        self._in_graph = LOSS in program.signature.outputs
        # A graph that takes labels, as distill{labels=...} makes it, has its own label loss.
        takes_labels = LABELS in program.signature.input_names
        self._label_weight = 0.0 if takes_labels else settings.label_weight
        supervised = self._label_weight > 0 and data.labels is not None
        if not supervised and not self._in_graph:
            raise TrainingError(
                "there is nothing to minimise: no labels are used and no pass put a loss in",
                who="session",
                where=f"stage {stage}",
                hint="set label_weight above 0, or add distill to the pipeline",
            )
        self._logits = logits_name(program) if supervised else ""
        self._terms = {
            name: name.removeprefix(f"{LOSS}.") for name in program.signature.losses if name != LOSS
        }
        self.names = (LOSS, *self._terms.values(), *([LABELS] if supervised else []))

    def inputs(self, batch: Mapping[str, Tensor]) -> Batch:
        """Return what the Program takes of a batch, on its device."""
        return {n: t.to(self.device) for n, t in inputs_for(self.program, batch).items()}

    def of(
        self,
        forward: Forward,
        inputs: Mapping[str, Tensor],
        labels: Tensor | None,
        share: float = 1.0,
        label_share: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what is minimised, and the values of :attr:`names`, detached.

        Args:
            forward: Computes the outputs of the Program.
            inputs: What it is called with.
            labels: Of the examples, if any.
            share: By which all is multiplied: the share of these examples in the batch.
            label_share: Likewise, of the loss against the labels.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            outputs = forward(**inputs)
        values = [outputs[name].detach().float() * share for name in self._terms]
        total = outputs[LOSS].float() * share if self._in_graph else None
        if labels is not None and self._logits:
            found = label_loss(self._kind, outputs[self._logits], labels.to(self.device))
            values.append(found.detach() * label_share)
            weighted = self._label_weight * label_share * found
            total = weighted if total is None else total + weighted
        assert total is not None  # one of the two there is
        return total, [total.detach(), *values]

    def label_share(self, part: Tensor | None, whole: Tensor | None) -> float:
        """Return the share of a part of a batch in the mean loss against its labels."""
        if part is None or whole is None:
            return 0.0
        return int(known_labels(part).sum()) / max(1, int(known_labels(whole).sum()))

    def backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the gradients of a whole batch at once.

        Returns:
            The values of :attr:`names` by their names.
        """
        total, values = self.of(self.program.module, self.inputs(batch), batch.get(LABELS))
        total.backward()  # type: ignore[no-untyped-call]  # torch's
        return dict(zip(self.names, values, strict=True))
