"""Which weights to keep: pure functions from scores, sparsity and pattern to a mask.

Three patterns are known, each with a text form: ``unstructured`` (single weights), ``RxC`` (blocks
of R outputs by C inputs, kept or dropped whole) and ``N:M`` (at most N non-zeros in every M
neighbours along the input dimension). Weights are PyTorch's: dimension 0 is the output, dimension 1
the input. The weight of a convolution, [outputs, inputs / groups, height, width], is the matrix
[outputs, all else] by which it multiplies its patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Block",
    "GroupWise",
    "Pattern",
    "Ties",
    "Unstructured",
    "kept_units",
    "kth_smallest",
    "mask_for",
    "masks_together",
    "parse_pattern",
    "unfit",
]

Ties = Literal["keep", "drop"]
"""Units that score exactly the threshold: ``keep`` them (score >= threshold, the K largest decide
it, as SparseBERT does) or ``drop`` them (score > threshold, the K smallest decide it, as Prune OFA
does)."""

_BLOCK = re.compile(r"(\d+)x(\d+)")
_GROUP = re.compile(r"(\d+):(\d+)")
_SLACK = 1e-6  # 1000 * (1 - 0.9) is 99.99999999999997 in floating point, and means 100


@dataclass(frozen=True)
class Unstructured:
    """Every weight is kept or dropped on its own."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class Block:
    """Blocks of ``rows`` outputs by ``columns`` inputs; the score of a block is its mean score."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@dataclass(frozen=True)
class GroupWise:
    """At most ``kept`` of every ``group`` neighbours along the input dimension."""

    kept: int
    group: int

    @property
    def sparsity(self) -> float:
        """The sparsity that this pattern ends at."""
        return 1.0 - self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


Pattern = Unstructured | Block | GroupWise


def parse_pattern(text: str) -> Pattern:
    """Read a pattern from its text form.

    >>> parse_pattern("1x4"), parse_pattern("2:4")
    (Block(rows=1, columns=4), GroupWise(kept=2, group=4))

    Raises:
        ValueError: When the text is none of the three forms, or its numbers make no sense.
    """
    if text == "unstructured":
        return Unstructured()
    if found := _BLOCK.fullmatch(text):
        rows, columns = int(found[1]), int(found[2])
        if rows and columns:
            return Block(rows, columns)
        raise ValueError("a block needs at least one row and one column")
    if found := _GROUP.fullmatch(text):
        kept, group = int(found[1]), int(found[2])
        if 0 < kept < group:
            return GroupWise(kept, group)
        raise ValueError("N:M needs 0 < N < M")
    raise ValueError("expected 'unstructured', a block such as '1x4', or N:M such as '2:4'")


def unfit(shape: Sequence[int], sparsity: float, pattern: Pattern) -> str | None:
    """Return why a weight of this shape cannot reach ``sparsity``; None when it can.

    >>> unfit((6, 10), 0.5, Block(1, 4))
    'blocks of 1x4 do not divide its shape 6x10'
    """
    rows, columns = shape[0], math.prod(shape[1:])
    if isinstance(pattern, Block) and (rows % pattern.rows or columns % pattern.columns):
        return f"blocks of {pattern} do not divide its shape {rows}x{columns}"
    if isinstance(pattern, GroupWise):
        if columns % pattern.group:
            return f"groups of {pattern.group} do not divide its {columns} inputs"
        if not math.isclose(sparsity, pattern.sparsity, abs_tol=1e-9):
            return f"{pattern} gives a sparsity of {pattern.sparsity:g}, not {sparsity:g}"
        return None
    units = _unit_count(shape, pattern)
    if kept_units(units, sparsity, "keep") == 0:
        kind = "weights" if isinstance(pattern, Unstructured) else f"blocks of {pattern}"
        return f"a sparsity of {sparsity:g} leaves none of its {units} {kind}"
    return None


def kept_units(units: int, sparsity: float, ties: Ties) -> int:
    """Return how many of ``units`` stay when no scores are equal.

    SparseBERT counts what it keeps, Prune OFA what it drops; each rounds its count down.

    >>> kept_units(10, 0.25, "keep"), kept_units(10, 0.25, "drop")
    (7, 8)
    """
    if ties == "keep":
        return math.floor(units * (1.0 - sparsity) + _SLACK)
    return units - math.floor(units * sparsity + _SLACK)


def mask_for(scores: Tensor, sparsity: float, pattern: Pattern, ties: Ties = "keep") -> Tensor:
    """Return the mask of one weight.

    Args:
        scores: How much each weight matters, >= 0, float of shape (outputs, inputs, ...).
        sparsity: Share to drop, 0 <= sparsity < 1. For N:M it lies between 0 and that of the
            pattern: on the way there, every group keeps ``ceil(M * (1 - sparsity))``.
        pattern: What is kept or dropped together; must fit the shape (:func:`unfit`).
        ties: What happens to units that score exactly the threshold.

    Returns:
        bool tensor shaped as ``scores``, True where the weight stays.

    >>> mask_for(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 0.5, GroupWise(1, 2))
    tensor([[ True, False,  True, False]])
    """
    return masks_together([scores], sparsity, pattern, ties)[0]


def masks_together(
    scores: Sequence[Tensor], sparsity: float, pattern: Pattern, ties: Ties = "keep"
) -> list[Tensor]:
    """Return the masks of several weights that share one threshold; arguments as above.

    ``sparsity`` is then that of all of them together. N:M has no threshold: each group decides.
    """
    matrices = [part.flatten(1) for part in scores]
    if isinstance(pattern, GroupWise):
        masks = [_group_mask(part, sparsity, pattern) for part in matrices]
    else:
        units = [_unit_scores(part, pattern) for part in matrices]
        kept = kept_units(sum(part.numel() for part in units), sparsity, ties)
        masks = [_spread(part, pattern) for part in _select(units, kept, ties)]
    return [mask.reshape(part.shape) for mask, part in zip(masks, scores, strict=True)]


def _select(units: Sequence[Tensor], kept: int, ties: Ties) -> list[Tensor]:
    total = sum(part.numel() for part in units)
    if kept >= total:
        return [torch.ones_like(part, dtype=torch.bool) for part in units]
    if ties == "drop":
        threshold = kth_smallest(units, total - kept)
        return [part > threshold for part in units]
    if kept == 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in units]
    threshold = kth_smallest(units, total - kept + 1)
    return [part >= threshold for part in units]


def kth_smallest(parts: Sequence[Tensor], k: int) -> Tensor:
    """Return the k-th smallest value (k = 1 is the smallest) of all ``parts`` together.

    A radix selection: the bits of a float32 >= 0 sort as the number does, so a histogram of the
    upper 16 bits names the bucket, and only that bucket is searched. It is exact, needs no copy of
    all parts, and takes about a quarter of the time of ``torch.kthvalue`` on a BERT matrix.

    Args:
        parts: float32 tensors >= 0, of any shapes.
        k: 1 <= k <= the number of values.

    Returns:
        float32 scalar.
    """
    bits = [part.reshape(-1).view(torch.int32) for part in parts]
    counts = torch.stack([torch.bincount(part >> 16, minlength=1 << 15) for part in bits]).sum(0)
    below = counts.cumsum(0)
    bucket = int(torch.searchsorted(below, k))
    rank = k - (int(below[bucket - 1]) if bucket else 0)
    found = torch.cat([part[part >> 16 == bucket] for part in bits])
    return found.kthvalue(rank).values.view(torch.float32)


def _unit_count(shape: Sequence[int], pattern: Pattern) -> int:
    size = pattern.rows * pattern.columns if isinstance(pattern, Block) else 1
    return math.prod(shape) // size


def _unit_scores(scores: Tensor, pattern: Pattern) -> Tensor:
    scores = scores.float()
    if not isinstance(pattern, Block):
        return scores
    pooled = F.avg_pool2d(scores[None, None], (pattern.rows, pattern.columns))
    return pooled[0, 0].contiguous()


def _spread(units: Tensor, pattern: Pattern) -> Tensor:
    if not isinstance(pattern, Block):
        return units
    return units.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)


def _group_mask(scores: Tensor, sparsity: float, pattern: GroupWise) -> Tensor:
    """Keep the largest of each group; of equal ones the first."""
    kept = max(pattern.kept, math.ceil(pattern.group * (1.0 - sparsity) - _SLACK))
    groups = scores.reshape(*scores.shape[:-1], -1, pattern.group)
    order = groups.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
    return mask.reshape(scores.shape)
