"""balance-banks: as many weights stay in every bank of every row, so that no element waits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sparsefx.errors import PassError
from sparsefx.graph.finite import is_finite
from sparsefx.masks import MaskSite
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.prune.masking import add_mask, masks_of, zero_masked
from sparsefx.passes.selection import check_selection, select_weights
from sparsefx.properties import FIXES_ZEROS, Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["BalanceBanks", "balanced_mask", "bank_quotas"]


def bank_quotas(columns: int, bank: int, sparsity: float) -> list[int]:
    """How many weights stay in each bank of a row, adding up to the rounded share of the row.

    >>> bank_quotas(256, 64, 0.95)
    [3, 3, 4, 3]
    >>> bank_quotas(100, 64, 0.5)
    [32, 18]
    """
    edges = [*range(0, columns, bank), columns]
    kept = [round(edge * (1 - sparsity)) for edge in edges]
    return [after - before for before, after in pairwise(kept)]


def balanced_mask(scores: Tensor, bank: int, sparsity: float) -> Tensor:
    """Keep the largest scores of every bank of every row.

    Args:
        scores: float `[outputs, inputs]`.
        bank: Neighbours along the input dimension that form a bank.
        sparsity: Share of zeros, the same in all rows.

    Returns:
        bool, shaped as `scores`, True where the weight stays.

    >>> balanced_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, 0.5)
    tensor([[ True, False,  True, False]])
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    start = 0
    for quota in bank_quotas(scores.shape[1], bank, sparsity):
        chosen = scores[:, start : start + bank].topk(quota, dim=1).indices + start
        mask.scatter_(1, chosen, True)
        start += bank
    return mask


@dataclass(frozen=True)
class BalanceBanks(Pass):
    """Multiplies weights by masks that keep equally many in every bank of every row.

    An array whose elements work through banks of a row in step waits for the fullest bank; with
    this pattern all are equally full, at a sparsity that need not be N of M in every bank: the
    quotas of a row's banks differ by at most one, and are the same in all rows (bank-balanced
    sparsity, Cao et al. 2019, with quotas). Establishes ``masked``, as magnitude-prune does; the
    zeros stay zero in ``program.step()``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[4.0, 3.0, 1.0, 2.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 4))
    >>> balanced = Pipeline.parse("balance-banks{bank=2,sparsity=0.5,roles=other}").run(program)
    >>> print(graph_text(balanced), end="")
    %mul = aten.mul.Tensor(%weight, %weight_mask)
    %linear = aten.linear(%input_1, %mul)
    return {output: %linear}
    >>> balanced.tensor("weight_mask")
    tensor([[1., 0., 0., 1.]])

    Skips what magnitude-prune skips: matrices of other roles, with a mask, or used otherwise.

    Attributes:
        sparsity: Share of zeros, 0 <= sparsity < 1, in every row.
        bank: Neighbours along the input dimension that form a bank.
        roles: Roles of the weights to prune: encoder, pooler, head, embedding, convolution, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
    """

    name: ClassVar[str] = "balance-banks"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.MASKED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = FIXES_ZEROS

    sparsity: float = 0.9
    bank: int = 64
    roles: tuple[str, ...] = ("encoder",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.sparsity < 1.0:
            raise self.refuse(
                "sparsity", "expected 0 <= sparsity < 1", hint="0.9 is nine zeros in ten"
            )
        if self.bank < 2:
            raise self.refuse("bank", "a bank has at least 2 weights")
        check_selection(self)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add the masks and zero what they drop."""
        selection = select_weights(program, self.roles, self.include, self.exclude)
        skipped = selection.left_alone
        sites = []
        for name in selection.chosen:
            weight = program.tensor(name).detach()
            if not is_finite(weight):
                raise PassError("it holds NaN or infinite values", who=self.name, where=name)
            columns = weight[0].numel()
            if not any(bank_quotas(columns, self.bank, self.sparsity)):
                raise PassError(
                    f"a sparsity of {self.sparsity:g} leaves none of the {columns} weights "
                    "of a row",
                    who=self.name,
                    where=name,
                    hint=f"choose a lower sparsity, or leave it out: exclude='{name}'",
                )
            scores = weight.abs().flatten(1)
            mask = balanced_mask(scores, self.bank, self.sparsity).view_as(weight)
            sites.append(add_mask(ctx.rewriter, name, mask, owner=str(self)))
        if not sites:
            return PassReport(0, skipped)
        zero_masked(program, sites)
        program.active = (*program.active, self)
        zeros = sum(int((program.tensor(site.mask) == 0).sum()) for site in sites)
        total = sum(program.tensor(site.mask).numel() for site in sites)
        note = (
            f"{zeros:,} of {total:,} weights are zero ({zeros / total:.2%}), banks of {self.bank}"
        )
        return PassReport(len(sites), skipped, (note,))

    def after_step(self, program: Program, step: int) -> None:
        """Zero the masked weights again after an optimizer step."""
        zero_masked(program, self.own_masks(program))

    def own_masks(self, program: Program) -> tuple[MaskSite, ...]:
        """The masks that this pass put in."""
        return masks_of(program, self)
