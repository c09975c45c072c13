"""rewind-weights: weights go back to where they began, their masks stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.masks import student_masks
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.dataflow import weight_of
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.prune.masking import zero_masked
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["RewindWeights"]

aten = torch.ops.aten


@dataclass(frozen=True)
class RewindWeights(Pass):
    """Give every parameter the value it has in another Program, under the masks that are there.

        W <- M * W_0

    A sparse network found by training, started again from its first weights, is a lottery ticket
    (Frankle and Carbin 2019); for BERT, W_0 is the pre-trained model and the head keeps what it
    learned (Chen et al. 2020). In a recipe W_0 is the stage's teacher, ``teacher: model``.

    Establishes nothing.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> trained, first = (
    ...     small_program(torch.nn.Linear(2, 1, bias=False), input=torch.ones(1, 2)) for _ in "ab"
    ... )
    >>> text = "magnitude-prune{sparsity=0.5,roles=other},rewind-weights"
    >>> ticket = Pipeline.parse(text).run(trained, programs={"teacher": first})
    >>> expected = first.tensor("weight") * ticket.tensor("weight_mask")
    >>> torch.equal(ticket.tensor("weight"), expected)
    True

    Skips parameters of heads, and those that the other Program lacks or has in another shape.

    Attributes:
        origin: Name under which the pipeline was given the Program with the first weights.
        heads: Rewind heads too.
    """

    name: ClassVar[str] = "rewind-weights"
    forbids: ClassVar[frozenset[Property]] = frozenset(
        {Property.LOCKED, Property.QUANT_PREPARED, Property.QUANTIZED}
    )

    origin: str = "teacher"
    heads: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The Program with the first weights."""
        return (self.origin,)

    @torch.no_grad()
    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Copy the values, then zero what is masked."""
        first = ctx.program(self.origin, who=self.name).named_tensors()
        spared = set() if self.heads else _head_tensors(program)
        applied, skipped = 0, []
        for name, parameter in program.module.named_parameters():
            if name in spared:
                skipped.append(Skip(name, "it is part of a head"))
            elif name not in first or first[name].shape != parameter.shape:
                skipped.append(Skip(name, f"the program {self.origin!r} has none of this shape"))
            else:
                parameter.copy_(first[name])
                applied += 1
        zero_masked(program, student_masks(program))
        return PassReport(applied, tuple(skipped))


def _head_tensors(program: Program) -> set[str]:
    """Return the weights and biases of linears that are heads."""
    roles = program.facts(EncoderStructure).roles
    found: set[str] = set()
    for node in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        name = weight_of(node)
        if name is None or roles.get(name) is not Role.HEAD:
            continue
        found.add(name)
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node):
            found.add(str(bias.target))
    return found
