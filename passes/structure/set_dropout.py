"""set-dropout: every dropout gets one rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sparsefx.graph.ops import dropout_rate
from sparsefx.passbase import Pass, PassContext, PassReport, Skip

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["SetDropout"]

aten = torch.ops.aten
_RATE_AT = {aten.dropout.default: 1, aten.feature_dropout.default: 1, dropout_rate: 0}


@dataclass(frozen=True)
class SetDropout(Pass):
    """Gives every dropout the same rate, that inside fused attention included.

    Establishes nothing. A student that learns from a teacher learns better without dropout: the
    teacher's outputs are what would keep it from over-fitting. Run it before ``distill``, or a
    teacher that was joined with ``teacher_mode='train'`` gets this rate too.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> program = small_program(torch.nn.Dropout(0.1), input=torch.ones(2))
    >>> print(graph_text(program), end="")
    %mode = mode()
    %dropout = aten.dropout(%input_1, 0.1, %mode)
    return {output: %dropout}
    >>> print(graph_text(Pipeline.parse("set-dropout").run(program)), end="")
    %mode = mode()
    %dropout = aten.dropout(%input_1, 0.0, %mode)
    return {output: %dropout}

    Skips dropouts that have this rate already.

    Attributes:
        rate: Share of values that are dropped in training, 0 <= rate < 1.
    """

    name: ClassVar[str] = "set-dropout"

    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.rate < 1.0:
            raise self.refuse("rate", "expected 0 <= rate < 1", hint="0 switches dropout off")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Set the rates."""
        applied, skipped = 0, []
        for node in program.graph.nodes:
            place = _RATE_AT.get(node.target)
            if place is None:
                continue
            if node.args[place] == self.rate:
                skipped.append(Skip(f"%{node.name}", f"has the rate {self.rate} already"))
                continue
            arguments = (*node.args[:place], self.rate, *node.args[place + 1 :])
            ctx.rewriter.set_args(node, *arguments, **node.kwargs)
            applied += 1
        return PassReport(applied, tuple(skipped))
