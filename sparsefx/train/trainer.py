"""The training of one stage, step by step, from any step on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx import registry
from sparsefx.errors import ArtifactError, TrainingError
from sparsefx.graph.digest import tensor_digest
from sparsefx.masks import find_masks, student_masks
from sparsefx.problem import Kind
from sparsefx.program import Program
from sparsefx.recipe import Training
from sparsefx.train import randomness, schedules
from sparsefx.train.checkpoints import Checkpoint
from sparsefx.train.data.batches import Batches, Encoded
from sparsefx.train.events import StepDone
from sparsefx.train.precheck import within
from sparsefx.train.sizes import batch_sizes, check_sizes
from sparsefx.train.step.counts import find_draws
from sparsefx.train.step.loss import BatchLoss
from sparsefx.train.step.optimization import flush_tiny, freeze, make_optimizer, trained_parameters
from sparsefx.train.step.parts import PartedBatch, find_ranges, part_sizes
from sparsefx.train.step.processes import Processes

__all__ = ["StageTrainer"]

_FLUSH_EVERY = 200  # steps
_MANY = 16  # steps whose numbers are fetched together from a device that works asynchronously


@dataclass(frozen=True)
class _Pending:
    """Numbers of a step that are not yet fetched from the device."""

    step: int
    rows: tuple[int, ...]
    names: tuple[str, ...]
    values: Tensor
    learning_rate: float
    sparsity: float | None


class StageTrainer:
    """Trains a Program through one stage.

    Call :meth:`advance` until :attr:`done` is :attr:`steps`. :meth:`checkpoint` and :meth:`restore`
    hold everything that the next steps depend on, so that a run goes on bit for bit.

    Args:
        name: Of the stage.
        settings: From the recipe.
        program: Trained in place, on the device where it is.
        data: Training examples.
        kind: Of the task: what the labels mean.
        processes: This one, and those that take a share of every batch.
        steps: Optimizer steps of the whole stage.
        batch_size: Unless the settings have one.
        seed: Of data order and dropout.

    Raises:
        TrainingError: Nothing is left to train, there is nothing to minimise, or some batch has a
            size that the Program does not take.
    """

    def __init__(
        self,
        name: str,
        settings: Training,
        program: Program,
        data: Encoded,
        kind: Kind,
        processes: Processes,
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.name = name
        self.program = program
        self._settings = settings
        self._processes = processes
        self._batches = Batches(data, settings.batch_size or batch_size, seed)
        self.steps = steps
        self.done = 0
        self.seconds = 0.0
        self._session_start = (0, 0.0)
        sizes = batch_sizes(len(data), self._batches.batch_size)
        parts = part_sizes(sizes, processes.count * settings.accumulate)
        check_sizes(program, data, parts, where=f"stage {name}")
        loss = BatchLoss(name, settings, program, data, kind)
        self._device = loss.device
        self._frozen = freeze(program, settings.freeze)
        self._trained = trained_parameters(program)
        self._versions = {n: (id(t), t._version) for n, t in program.named_tensors().items()}
        self._optimizer = make_optimizer(program, self._trained, settings)
        self._gradients = _gradients(loss, settings, self._trained, processes, seed)
        self._watch = _Watch(program)
        self._factor = schedules.build(
            settings.schedule, self.steps, schedules.pruning_window(program)
        )
        self._sparsity = _SparsityMeter(program)
        self._pending: list[_Pending] = []
        program.train()

    # -- one step --------------------------------------------------------------------------------

    def advance(self) -> list[StepDone]:
        """Do one optimizer step; return the steps whose numbers are known by now.

        Raises:
            TrainingError: The loss or a gradient is not finite; names the step and the examples.
            PassError: What the ``after_step`` of an active pass raised.
        """
        began = time.perf_counter()
        rows = tuple(int(row) for row in self._batches.upcoming)
        rate = self._settings.optimizer.learning_rate * self._factor(self.done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        numbers = self._gradients(next(self._batches), self.done)
        if self._settings.clip is not None:
            parameters = [parameter for _, parameter in self._trained]
            norm = nn.utils.clip_grad_norm_(parameters, self._settings.clip)
            numbers["gradient_norm"] = norm
        self.done += 1
        self._pending.append(self._note(rows, numbers, rate))
        # Numbers that are not finite end the stage before weights take them.
        due = self._device.type == "cpu" or len(self._pending) == _MANY
        fetched = self._fetched() if due else []
        self._optimizer.step()
        with within(self.name, f"step {self.done} of {self.steps}"):
            self.program.step()
        self._optimizer.zero_grad()
        if self._processes.count > 1:
            self._check_same(self._watch.changed())
        if self.done % _FLUSH_EVERY == 0:
            flush_tiny(self._optimizer)
        self.seconds += time.perf_counter() - began
        return [self._step_done(item, numbers) for item, numbers in fetched]

    def known(self) -> list[StepDone]:
        """Fetch the numbers of all steps done from the device.

        Raises:
            TrainingError: A loss or gradient is not finite.
        """
        return [self._step_done(item, numbers) for item, numbers in self._fetched()]

    def _fetched(self) -> list[tuple[_Pending, dict[str, float]]]:
        pending, self._pending = self._pending, []
        return [(item, self._finite_numbers(item)) for item in pending]

    def check_start(self) -> None:
        """Hold what training begins with, or goes on from, to be the same in every process.

        Raises:
            TrainingError: Naming the process and the tensor that differs.
        """
        if self._processes.count > 1:
            self._check_same(self.program.named_tensors())

    def _check_same(self, tensors: Mapping[str, Tensor]) -> None:
        self._processes.check_same(
            {name: tensor_digest(tensor) for name, tensor in tensors.items()},
            who=f"stage {self.name}",
            where=f"step {self.done} of {self.steps}",
        )

    def _note(self, rows: tuple[int, ...], numbers: Mapping[str, Tensor], rate: float) -> _Pending:
        values = torch.stack([value.detach().float() for value in numbers.values()])
        return _Pending(self.done, rows, tuple(numbers), values, rate, self._sparsity())

    def _finite_numbers(self, item: _Pending) -> dict[str, float]:
        numbers = dict(zip(item.names, item.values.tolist(), strict=True))
        loss, norm = numbers["loss"], numbers.get("gradient_norm")
        wrong = [n for n, v in (("loss", loss), ("gradient", norm)) if v and not math.isfinite(v)]
        if wrong:
            raise TrainingError(
                f"the {wrong[0]} is not finite ({loss if wrong[0] == 'loss' else norm}); the batch "
                f"held the training examples {', '.join(map(str, item.rows))}",
                who=f"stage {self.name}",
                where=f"step {item.step} of {self.steps}",
                hint="the last checkpoint is kept; lower the learning rate, clip gradients, or "
                "look at these examples",
            )
        return numbers

    def _step_done(self, item: _Pending, numbers: dict[str, float]) -> StepDone:
        loss, norm = numbers.pop("loss"), numbers.pop("gradient_norm", None)
        done, seconds = self._session_start
        pace = (self.seconds - seconds) / max(1, self.done - done)
        return StepDone(
            stage=self.name,
            step=item.step,
            steps=self.steps,
            loss=loss,
            terms=numbers,
            learning_rate=item.learning_rate,
            gradient_norm=norm,
            sparsity=item.sparsity,
            seconds=self.seconds,
            left=pace * (self.steps - item.step),
        )

    # -- whole stage -----------------------------------------------------------------------------

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in masked weights now; None when none are masked."""
        return self._sparsity()

    def close(self) -> None:
        """Let frozen parameters be trained again by whoever comes next."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.program.module.zero_grad()

    def checkpoint(self) -> Checkpoint:
        """Return what the next steps depend on.

        Of the Program only what changed since the stage began is held: a teacher and frozen
        embeddings are not written again and again.
        """
        trained = {name for name, _ in self._trained}
        tensors = {
            f"program/{name}": tensor
            for name, tensor in self.program.named_tensors().items()
            if name in trained or self._versions.get(name) != (id(tensor), tensor._version)
        }
        for name, parameter in self._trained:
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value
        state: dict[str, Any] = {
            "position": self._batches.state_dict(),
            "seconds": self.seconds,
            "program_steps": self.program.steps,
            "active": [str(item) for item in self.program.active],
        }
        generators, state["random"] = randomness.get_state(self._device)
        tensors.update({f"random/{name}": tensor for name, tensor in generators.items()})
        return Checkpoint(self.done, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of this stage.

        Raises:
            ArtifactError: It is of another Program.
        """
        parameters = dict(self._trained)
        held = self.program.named_tensors()
        generators: dict[str, Tensor] = {}
        for place, saved in checkpoint.tensors.items():
            what, _, name = place.partition("/")
            if what == "program":
                _copy_into(held, name, saved)
            elif what == "random":
                generators[name] = saved
            elif what == "optimizer":
                key, _, name = name.partition("/")
                value = saved if key == "step" else saved.to(self._device)
                self._optimizer.state[parameters[name]][key] = value
        state = checkpoint.state
        self.done, self.seconds = checkpoint.step, state["seconds"]
        self._session_start = (self.done, self.seconds)
        self._batches.load_state_dict(state["position"])
        self.program.steps = state["program_steps"]
        self.program.active = tuple(registry.parse_passes(t)[0] for t in state["active"])
        randomness.set_state(generators, state["random"], self._device)


def _copy_into(held: Mapping[str, Tensor], name: str, saved: Tensor) -> None:
    if name not in held or held[name].shape != saved.shape:
        raise ArtifactError(
            "the checkpoint is of another Program",
            who="resume",
            where=name,
            hint="remove the folder of this stage to train it from its beginning",
        )
    with torch.no_grad():
        held[name].copy_(saved)


def _gradients(
    loss: BatchLoss,
    settings: Training,
    trained: Sequence[tuple[str, nn.Parameter]],
    processes: Processes,
    seed: int,
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return what computes the gradients of a batch and returns the loss and its terms."""
    parts = processes.count * settings.accumulate
    if parts == 1 and not find_draws(loss.program):  # which are to be those of any other number
        return lambda batch, step: loss.backward(batch)
    parameters = [parameter for _, parameter in trained]
    return PartedBatch(loss, parameters, processes, settings.accumulate, seed).backward


class _Watch:
    """Tells which masks and observers have changed.

    What else a pass keeps in buffers shows in these; the inverse Fisher matrices of
    ``obert-prune``, 50 times the weights, would take longer to hash than a step to compute.
    """

    def __init__(self, program: Program) -> None:
        names = {site.mask for site in find_masks(program)}.union(*find_ranges(program))
        self._buffers = {name: program.tensor(name) for name in sorted(names)}
        self._versions = self._now()

    def _now(self) -> dict[str, int]:
        return {name: buffer._version for name, buffer in self._buffers.items()}

    def changed(self) -> dict[str, Tensor]:
        """Return those that have changed since this was last asked."""
        last, self._versions = self._versions, self._now()
        return {n: b for n, b in self._buffers.items() if self._versions[n] != last[n]}


class _SparsityMeter:
    """The share of zeros in a student's masks, counted again only when one has changed."""

    def __init__(self, program: Program) -> None:
        self._masks = [program.tensor(site.mask) for site in student_masks(program)]
        self._versions: tuple[int, ...] | None = None
        self._value: float | None = None

    def __call__(self) -> float | None:
        versions = tuple(mask._version for mask in self._masks)
        if self._masks and versions != self._versions:
            total = sum(mask.numel() for mask in self._masks)
            kept = sum(int(torch.count_nonzero(mask)) for mask in self._masks)
            self._value, self._versions = 1 - kept / total, versions
        return self._value
