"""mlm-head: an encoder gets the head of a masked language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sparsefx.errors import PassError
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.dataflow import last_dim
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.pretrain.vocabulary import masked_lm_output, token_table

if TYPE_CHECKING:
    from torch import fx

    from sparsefx.program import Program

__all__ = ["MlmHead"]

aten = torch.ops.aten

_OUTPUT = "mlm_logits"
_PREFIX = "mlm_head."
_SPREAD = 0.02  # BERT's initializer_range


@dataclass(frozen=True)
class MlmHead(Pass):
    """Add BERT's head for masked tokens: a transform, then a decoder tied to the token embeddings.

        z = norm(gelu(W h + b)) E^T + c        [batch, sequence, vocabulary]

    E is the table of token embeddings, h the last hidden states (Devlin et al. 2019, as released).
    W is drawn from a normal distribution of deviation 0.02; b, c are 0. The output is
    ``mlm_logits``; those that were there stay, so that a classifier keeps its head through
    pre-training. ``keep-outputs`` takes the head off again.

    Establishes nothing. Skips a Program that has such an output already.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> ids = torch.ones(2, 4, dtype=torch.int64)
    >>> found = Pipeline.parse("mlm-head").run(small_encoder())(input_ids=ids)
    >>> tuple(found["mlm_logits"].shape)
    (2, 4, 20)

    Attributes:
        seed: Of the initial values.
    """

    name: ClassVar[str] = "mlm-head"
    changes_signature: ClassVar[bool] = True

    seed: int = 0

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add parameters, nodes and output."""
        found = masked_lm_output(program)
        if found is not None:
            return PassReport(0, (Skip(found, "it predicts tokens already"),))
        rw = ctx.rewriter
        states = _last_states(program)
        _, table = token_table(program, who=self.name)
        rows, width = program.tensor(table).shape
        device = program.tensor(table).device
        weight = _normal(width, last_dim(states), self.seed).to(device)
        values = {
            "dense.weight": weight,
            "dense.bias": torch.zeros(width, device=device),
            "norm.weight": torch.ones(width, device=device),
            "norm.bias": torch.zeros(width, device=device),
            "decoder.bias": torch.zeros(rows, device=device),
        }
        with rw.before(program.graph.output_node()):
            dense, bias, scale, shift, last = (
                rw.add_parameter(_PREFIX + name, value) for name, value in values.items()
            )
            hidden = rw.call(aten.gelu.default, rw.call(aten.linear.default, states, dense, bias))
            normed = rw.call(aten.layer_norm.default, hidden, [width], scale, shift, 1e-12)
            logits = rw.call(aten.linear.default, normed, rw.get(table), last)
        rw.set_output(_OUTPUT, logits)
        return PassReport(1, notes=(f"decoder tied to {table}",))


def _last_states(program: Program) -> fx.Node:
    outputs = program.outputs()
    if "last_hidden_state" in outputs:
        return outputs["last_hidden_state"]
    last = program.facts(EncoderStructure).require("mlm-head")[-1]
    if last.norm == "pre":
        raise PassError(
            "a final norm follows the last layer, and its output is not returned",
            who="mlm-head",
            where=f"%{last.hidden.name}",
            hint="capture the model without its head, so that it returns last_hidden_state",
        )
    return last.hidden


def _normal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(rows, columns).normal_(0.0, _SPREAD, generator=generator)
