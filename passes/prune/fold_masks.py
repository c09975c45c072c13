"""fold-masks: masks go into their weights and leave the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsefx.masks import find_masks
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.prune.lock import PatternLock
from sparsefx.passes.prune.masking import bake, end_owners
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["FoldMasks"]


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Writes ``weight * mask`` into each masked weight and removes the mask.

    Ends ``masked`` and ``locked``: the zeros are then plain values, and training would move them.
    Outputs stay exactly as they were.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> program = small_program(torch.nn.Linear(4, 2, bias=False), input=torch.ones(1, 4))
    >>> pruned = Pipeline.parse("magnitude-prune{sparsity=0.5,roles=other}").run(program)
    >>> print(graph_text(pruned), end="")
    %mul = aten.mul.Tensor(%weight, %weight_mask)
    %linear = aten.linear(%input_1, %mul)
    return {output: %linear}
    >>> folded = Pipeline.parse("fold-masks").run(pruned)
    >>> print(graph_text(folded), end="")
    %linear = aten.linear(%input_1, %weight)
    return {output: %linear}
    >>> int((folded.tensor("weight") == 0).sum())
    4

    Skips nothing: every mask is folded.
    """

    name: ClassVar[str] = "fold-masks"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.MASKED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.MASKED, Property.LOCKED})

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Fold all masks."""
        cut = end_owners(ctx.rewriter)
        sites = find_masks(program)
        for site in sites:
            bake(program, site)
            ctx.rewriter.replace(site.product, ctx.rewriter.get(site.weight))
            ctx.rewriter.remove_tensor(site.mask)
        program.active = tuple(i for i in program.active if not isinstance(i, PatternLock))
        return PassReport(len(sites), (), cut)
