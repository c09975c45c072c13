"""The pass `round-weights`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.program import Program

__all__ = ["RoundWeights"]


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weight of every linear layer to so many decimals.

    Skips weights that are computed rather than stored, and those that are round already.
    """

    name: ClassVar[str] = "round-weights"

    decimals: int = 2

    def __post_init__(self) -> None:
        """Refuse a negative number of decimals."""
        super().__post_init__()
        if self.decimals < 0:
            raise self.refuse("decimals", "expected 0 or more")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Replace the weights that rounding changes."""
        applied = 0
        skipped = []
        linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        for node in linears:
            weight = node.args[1]
            if not isinstance(weight, torch.fx.Node) or weight.op != "get_attr":
                skipped.append(Skip(f"%{node.name}", "its weight is computed, not stored"))
                continue
            tensor = program.tensor(str(weight.target)).detach()
            rounded = tensor.round(decimals=self.decimals)
            if torch.equal(tensor, rounded):
                skipped.append(Skip(str(weight.target), "it is round already"))
                continue
            ctx.rewriter.set_tensor(str(weight.target), rounded)
            applied += 1
        return PassReport(applied=applied, skipped=tuple(skipped))
