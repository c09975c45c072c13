"""permute-rows: hidden features change places so that an array's elements share work evenly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, fx

from sparsefx.masks import MASK_SUFFIX
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure, LinearSite
from sparsefx.passes.analyses.ties import ParameterTies
from sparsefx.passes.structure.feature_order import why_order_matters
from sparsefx.passes.structure.zero_groups import zero_groups
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["PermuteRows", "lock_step_cost"]

_SCALE_SUFFIXES = ("_scale", "_zero_point")
_WEIGHT_OPERATORS = (torch.ops.aten.mul.Tensor, torch.ops.sparsefx.dequantize.default)


def lock_step_cost(mask: Tensor, elements: int, block: int) -> int:
    """Cycles of one activation row on an array in lock-step.

    Rows go to ``elements`` elements in groups; every block of columns takes as long as the group's
    fullest row: the sum over groups and blocks of the largest count.

    Args:
        mask: bool ``[rows, columns]``, True where a weight is not zero.
        elements: Rows side by side.
        block: Columns between two barriers.

    >>> lock_step_cost(torch.tensor([[True, True], [False, False]]), 2, 2)
    2
    """
    rows, columns = mask.shape
    padded = torch.zeros(-(-rows // elements) * elements, -(-columns // block) * block)
    padded[:rows, :columns] = mask
    counts = padded.reshape(-1, elements, padded.shape[1] // block, block).sum(dim=3)
    return int(counts.amax(dim=1).sum())


@dataclass(frozen=True)
class _Pair:
    """Linears that make hidden features, and the one that reads them."""

    makers: tuple[LinearSite, ...]
    reader: LinearSite
    heads: int = 1

    @property
    def sites(self) -> tuple[LinearSite, ...]:
        """All linears of the pair."""
        return (*self.makers, self.reader)


@dataclass(frozen=True)
class PermuteRows(Pass):
    """Reorders the features between two linears: rows of the first, columns of the second.

    In a feed-forward block any order of the inner features gives the same output, and in attention
    any order of the value's features within a head, as long as all that stands between the two
    works on each feature alone, which is checked. The order is chosen, among those by count of
    non-zeros, that takes an array in lock-step the fewest cycles (:func:`lock_step_cost`) for both
    linears; where none is better than the present one, nothing changes. Biases, masks, and scales
    of output channels move along.

    Sums are then formed in another order: float results differ by rounding, integer accumulators
    not at all.

    >>> import sparsefx
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> program = small_program(torch.nn.Linear(4, 2), input=torch.ones(1, 4))
    >>> Pipeline.parse("permute-rows{on_no_match=ignore}").run(program).history[-1].applied
    0

    Skips blocks whose inner features are not plain: a fused gate, fused q, k and v, grouped heads;
    a LayerNorm, softmax or anything else that is not element-wise on the way; tensors that
    something else reads too. An order that would tear apart how neighbours are pruned (blocks, N:M,
    equal banks) is not taken.

    Attributes:
        elements: Rows that the array takes side by side.
        block: Columns between two barriers.
    """

    name: ClassVar[str] = "permute-rows"
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.FUSED, Property.QUANT_PREPARED})

    elements: int = 32
    block: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("elements", "block"):
            if getattr(self, option) < 1:
                raise self.refuse(option, "expected at least 1")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Reorder every pair for which a better order is found."""
        skipped = list(program.facts(EncoderStructure).skipped)
        before = after = applied = 0
        for pair in _pairs(program, skipped):
            reader = _kept(program, pair.reader)
            makers = [_kept(program, maker) for maker in pair.makers]
            now = self._cost(makers, reader)
            order, best, torn = self._best(makers, reader, pair.heads, now)
            before, after = before + now, after + best
            if order is None:
                why = f" without tearing {torn}" if torn else ""
                reason = f"no order by count takes fewer cycles{why}"
                skipped.append(Skip(pair.reader.weight, reason))
                continue
            for maker in pair.makers:
                _move(ctx.rewriter, maker, order, rows=True)
            _move(ctx.rewriter, pair.reader, order, rows=False)
            applied += 1
        share = f" ({before / after:.2f}x)" if after else ""
        note = f"lock-step cycles of a token, in these linears: {before:,} to {after:,}{share}"
        return PassReport(applied, tuple(skipped), (note,) if before else ())

    def _cost(self, makers: list[Tensor], reader: Tensor) -> int:
        return sum(lock_step_cost(m, self.elements, self.block) for m in (*makers, reader))

    def _best(
        self, makers: list[Tensor], reader: Tensor, heads: int, now: int
    ) -> tuple[Tensor | None, int, str]:
        """The best of the orders by rows, by columns and by both; and what a better one tears.

        Returns:
            The order, None where none is better than ``now`` and tears nothing; its cycles; and a
            pattern that an order of fewer cycles would have torn.
        """
        rows = sum((maker.sum(dim=1) for maker in makers[1:]), makers[0].sum(dim=1))
        columns = reader.sum(dim=0)
        found: list[tuple[int, Tensor]] = []
        for key in (rows, columns, rows + columns):
            order = _descending(key, heads)
            cost = self._cost([maker[order] for maker in makers], reader[:, order])
            found.append((cost, order))
        torn = ""
        for cost, order in sorted(found, key=lambda pair: pair[0]):
            if cost >= now:
                break
            if tears := _torn([*(maker.T for maker in makers), reader], order):
                torn = torn or tears
                continue
            return order, cost, torn
        return None, now, torn


def _kept(program: Program, site: LinearSite) -> Tensor:
    """Where a linear's weight is not zero; what a mask hides is."""
    weight = program.canonical(site.weight)
    mask = program.named_tensors().get(weight + MASK_SUFFIX)
    kept = program.tensor(weight) != 0
    return kept if mask is None else kept & (mask != 0)


def _torn(weights: list[Tensor], order: Tensor) -> str:
    """Name a pattern along the last dimension of ``weights`` that does not outlive the order."""
    for kept in weights:
        if found := zero_groups(kept):
            after = zero_groups(kept[:, order])
            if lost := [text for text in found if text not in after]:
                return lost[0]
    return ""


def _descending(key: Tensor, heads: int) -> Tensor:
    """Indices in descending order of the key, each head's features staying in their head."""
    by_head = key.reshape(heads, -1)
    order = by_head.argsort(dim=1, descending=True, stable=True)
    offset = torch.arange(heads, device=key.device)[:, None] * by_head.shape[1]
    return (order + offset).reshape(-1)


def _pairs(program: Program, skipped: list[Skip]) -> Iterator[_Pair]:
    """One pair for each set of tensors: layers that share all of theirs come once."""
    alike: dict[tuple[str, ...], list[_Pair]] = {}
    for layer in program.facts(EncoderStructure).layers:
        for pair in _candidates(layer):
            alike.setdefault(tuple(site.weight for site in pair.sites), []).append(pair)
    for pairs in alike.values():
        if reason := _unfit(program, pairs):
            skipped.append(Skip(pairs[0].reader.weight, reason))
        else:
            yield pairs[0]


def _candidates(layer: EncoderLayer) -> list[_Pair]:
    found = [_Pair(layer.up, layer.down)]
    if not layer.fused and layer.v.node is not layer.k.node:
        found.append(_Pair((layer.v,), layer.output, layer.core.heads))
    return found


def _unfit(program: Program, pairs: list[_Pair]) -> str:
    """Return why the features between these linears, of one set of tensors, have to stay."""
    pair = pairs[0]
    columns = program.tensor(pair.reader.weight).shape[1]
    for maker in pair.makers:
        rows = program.tensor(maker.weight).shape[0]
        if rows != columns:
            return f"{maker.weight} makes {rows} features, {columns} are read"
    if columns % pair.heads:
        return f"{columns} features in {pair.heads} heads"
    if others := _other_uses(program, pairs):
        return others
    for pair in pairs:
        makers = [maker.node for maker in pair.makers]
        reason = next((text for site in pair.sites if (text := _computed(program, site))), "")
        reason = reason or why_order_matters(program, makers, pair.reader.node, pair.heads)
        if reason:
            return f"its features cannot change places: {reason}"
    return ""


def _other_uses(program: Program, pairs: list[_Pair]) -> str:
    """Name what reads a tensor that would be reordered, without being part of these pairs."""
    ties = program.facts(ParameterTies)
    within = {site.node.name for pair in pairs for site in pair.sites}
    moved = [name for maker in pairs[0].makers for name in (maker.weight, maker.bias)]
    for name in (*moved, pairs[0].reader.weight):
        shared = ties.of(name) if name else None
        for user in shared.uses if shared else ():
            if user not in within:
                return f"{name} is read by %{user} too"
    return ""


def _computed(program: Program, site: LinearSite) -> str:
    """Name what computes a linear's weight or bias, where that is more than mask or scale."""
    weight, bias = site.node.args[1], (*site.node.args, None)[2]
    if bias is not None and site.bias is None:
        return f"%{site.node.name} adds a computed bias"
    assert isinstance(weight, fx.Node)  # or the analysis had found no tensor behind it
    name = program.canonical(site.weight)
    beside = {name, *(name + suffix for suffix in (MASK_SUFFIX, *_SCALE_SUFFIXES))}
    plain = weight.op == "get_attr" or weight.target in _WEIGHT_OPERATORS
    read = {str(arg.target) for arg in weight.all_input_nodes} | {name}
    return "" if plain and read <= beside else f"%{weight.name} computes {name} anew"


def _move(rewriter: Rewriter, site: LinearSite, order: Tensor, *, rows: bool) -> None:
    """Reorder a linear's tensors, along its outputs (``rows``) or its inputs."""
    program = rewriter.program
    tensors = program.named_tensors()
    weight = program.canonical(site.weight)
    rewriter.set_tensor(weight, tensors[weight][order] if rows else tensors[weight][:, order])
    if (mask := weight + MASK_SUFFIX) in tensors:
        rewriter.set_tensor(mask, tensors[mask][order] if rows else tensors[mask][:, order])
    if not rows:
        return
    along = [site.bias, *(weight + suffix for suffix in _SCALE_SUFFIXES)]
    for name in (program.canonical(n) for n in along if n):
        if name in tensors and tensors[name].dim() == 1:
            rewriter.set_tensor(name, tensors[name][order])
