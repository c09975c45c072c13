"""How the dimensions of a tensor lie in rows of channels and columns of tokens.

A plan stores channels x tokens and computes token by token, so views, transposes and cuts move
nothing: they only say in another way where an element lies. A dimension is a product of factors:
the batch, the sequence, or a part of the channels.

    [batch, sequence, 192]                      b | s | 192
    unflatten to [batch, sequence, 3, 64]       b | s | 3 (step 64) | 64
    select 1 of the 3, view as 4 heads          b | s | 4 (step 16) | 16     from channel 64 on
    transpose(1, 2)                             b | 4 (step 16) | s | 16
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH", "SEQUENCE", "Channels", "Dim", "Layout", "arranged", "tokens_by_channels"]

BATCH: Literal["b"] = "b"
SEQUENCE: Literal["s"] = "s"


@dataclass(frozen=True)
class Channels:
    """A factor of the channels: `size` of them, `step` channels from one to the next."""

    size: int
    step: int = 1


Factor = Literal["b", "s"] | Channels
Dim = tuple[Factor, ...]


@dataclass(frozen=True)
class Layout:
    """The dimensions of a tensor, and the channel where it begins."""

    dims: tuple[Dim, ...]
    first: int = 0

    @property
    def lead(self) -> tuple[Dim, ...]:
        """All dimensions but the last."""
        return self.dims[:-1]

    @property
    def tokens(self) -> list[str]:
        """Which of batch and sequence it has, in no order."""
        return sorted(f for dim in self.dims for f in dim if isinstance(f, str))

    @property
    def plain(self) -> int | None:
        """Channels of the last dimension if it holds them all, one after the other; else None."""
        if not self.dims or any(isinstance(f, Channels) for d in self.lead for f in d):
            return None
        if self.dims[-1] == ():
            return 1
        (last, *others) = self.dims[-1]
        alone = isinstance(last, Channels) and last.step == 1 and not others
        return last.size if alone and isinstance(last, Channels) else None

    def with_channels(self, count: int) -> Layout:
        """The layout of what an operation on each token makes of this one."""
        return Layout((*self.lead, _joined([Channels(count)])))

    def encoded(self) -> list[Any]:
        """As JSON values: where it begins, then its dimensions."""
        one = [[[f.size, f.step] if isinstance(f, Channels) else f for f in d] for d in self.dims]
        return [self.first, *one]

    @classmethod
    def decoded(cls, values: Sequence[Any]) -> Layout:
        """What `encoded` made."""
        first, *dims = values
        return cls(
            tuple(tuple(f if isinstance(f, str) else Channels(*f) for f in d) for d in dims),  # type: ignore[misc]
            int(first),
        )

    def permuted(self, order: Iterable[int]) -> Layout:
        """After `permute`."""
        return replace(self, dims=tuple(self.dims[d] for d in order))

    def swapped(self, a: int, b: int) -> Layout:
        """After `transpose`."""
        order = list(range(len(self.dims)))
        order[a], order[b] = order[b], order[a]
        return self.permuted(order)

    def reshaped(self, shape: Sequence[int], sizes: Mapping[str, int]) -> Layout | None:
        """After `view` or `reshape`; None if a dimension would hold a part of tokens.

        Args:
            shape: The new sizes.
            sizes: Sizes of "b" and "s" that the new sizes were computed for.
        """
        factors = [factor for dim in self.dims for factor in dim]
        dims: list[Dim] = []
        for size in shape:
            taken = _take(factors, size, sizes)
            if taken is None:
                return None
            dims.append(taken)
        if factors and dims and all(_size(f, sizes) == 1 for f in factors):
            dims[-1] = _joined([*dims[-1], *factors])
            factors = []
        if len(dims) > 1 and len(dims[-1]) > 1 and isinstance(dims[-1][0], str):
            # Tokens of size 1 belong to either dimension; before the channels they are in the way.
            token, *channels = dims[-1]
            if _size(token, sizes) == 1:
                dims[-2:] = [(*dims[-2], token), tuple(channels)]
        return None if factors else replace(self, dims=tuple(dims))

    def cut(self, dim: int, start: int, count: int) -> Layout | None:
        """After a slice of a dimension of channels."""
        last = self.dims[dim]
        if len(last) != 1 or not isinstance(last[0], Channels):
            return None
        kept = _joined([replace(last[0], size=count)])
        dims = (*self.dims[:dim], kept, *self.dims[dim + 1 :])
        return Layout(dims, self.first + start * last[0].step)

    def selected(self, dim: int, index: int) -> Layout | None:
        """After `select` in a dimension of channels."""
        found = self.cut(dim, index, 1)
        return found.without(dim) if found else None

    def without(self, dim: int) -> Layout:
        """Without a dimension."""
        return replace(self, dims=(*self.dims[:dim], *self.dims[dim + 1 :]))

    def heads(self) -> tuple[str, int, int] | None:
        """(order, heads, size) of heads: order is "bsd", or "bds" with channels before tokens.

        The dimensions are [batch, heads] or one that holds both, then tokens and channels.
        """
        if len(self.dims) < 3:
            return None
        *outer, left, right = self.dims
        ahead = [factor for dim in outer for factor in dim]
        order = "bsd" if left == (SEQUENCE,) else "bds"
        inner = right if order == "bsd" else left
        if (SEQUENCE,) not in (left, right) or len(inner) != 1:
            return None
        (channels,) = inner
        if not isinstance(channels, Channels) or channels.step != 1 or ahead[:1] != [BATCH]:
            return None
        if len(ahead) == 1:
            return order, 1, channels.size
        factor = ahead[1]
        if len(ahead) > 2 or not isinstance(factor, Channels) or factor.step != channels.size:
            return None
        return order, factor.size, channels.size

    def turned_heads(self) -> tuple[int, int] | None:
        """(heads, size) of [batch, heads, sequence, size] in some order of the first three."""
        (*outer, last) = (dim[0] if len(dim) == 1 else () for dim in self.dims)
        if len(outer) != 3 or not isinstance(last, Channels) or last.step != 1:
            return None
        heads = [factor for factor in outer if isinstance(factor, Channels)]
        if {BATCH, SEQUENCE} - set(outer) or len(heads) != 1 or heads[0].step != last.size:
            return None
        return heads[0].size, last.size


def tokens_by_channels(channels: int) -> Layout:
    """[batch, sequence, channels]."""
    return Layout(((BATCH,), (SEQUENCE,), _joined([Channels(channels)])))


def _size(factor: Factor, sizes: Mapping[str, int]) -> int:
    return factor.size if isinstance(factor, Channels) else sizes[factor]


def _take(factors: list[Factor], size: int, sizes: Mapping[str, int]) -> Dim | None:
    """Remove from the front of `factors` what makes up a dimension of this size."""
    taken: list[Factor] = []
    if size == 1 and factors and _size(factors[0], sizes) == 1:
        return (factors.pop(0),)
    while size > 1:
        if not factors:
            return None
        front = factors.pop(0)
        own = _size(front, sizes)
        if own and size % own == 0:
            taken.append(front)
            size //= own
            continue
        if not isinstance(front, Channels) or own % size:
            return None
        inner = own // size
        taken.append(Channels(size, front.step * inner))
        factors.insert(0, Channels(inner, front.step))
        size = 1
    return _joined(taken)


def _joined(factors: Sequence[Factor]) -> Dim:
    """Factors of channels that follow each other as one; none of size 1."""
    found: list[Factor] = []
    for factor in factors:
        if not isinstance(factor, Channels):
            found.append(factor)
            continue
        last = found[-1] if found else None
        follows = isinstance(last, Channels) and last.step == factor.size * factor.step
        if follows and isinstance(last, Channels):
            found[-1] = Channels(last.size * factor.size, factor.step)
        elif factor.size != 1:
            found.append(factor)
    return tuple(found)


def arranged(rows: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """The tensor that lies so in rows given as [batch, sequence, rows] or [batch, rows].

    The rows lie one after the other, without gaps. Those that lie so already are returned as they
    are. Else the result has no gaps either, and its dimensions lie in memory in the order in which
    PyTorch would have them: as a view of the rows.
    """
    lead = ((BATCH,), (SEQUENCE,))[: rows.ndim - 1]
    if (layout.first, layout.lead, layout.plain) == (0, lead, rows.shape[-1]):
        return rows
    sizes = {BATCH: rows.shape[0], SEQUENCE: rows.shape[1]}
    steps = {BATCH: rows.strides[0], SEQUENCE: rows.strides[1]}
    factors = [factor for dim in layout.dims for factor in dim]
    split: NDArray[np.float32] = np.ndarray(
        [_size(f, sizes) for f in factors],
        rows.dtype,
        rows,
        layout.first * rows.itemsize,
        [f.step * rows.itemsize if isinstance(f, Channels) else steps[f] for f in factors],
    )
    shape = [math.prod(_size(f, sizes) for f in dim) for dim in layout.dims]
    return np.array(split.reshape(shape), order="K")
