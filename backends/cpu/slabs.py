"""Packs the real tokens of a batch and cuts them into slabs, which go through a plan together.

    batch [B, S] with padding          slabs of panels of 64 tokens
    a a a a a . . .                    | aaaaa........... bbb.............|  (sequences start at
    b b b . . . . .        ----->      | cccccccc........ ...............|   multiples of 16)
    c c c c c c c c

Where attention asks for the distance of tokens, padding between real tokens keeps its place and is
hidden as a key; elsewhere, as at both ends, it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.kernels.attention import CHUNK

__all__ = ["Cut", "Slab", "in_panels", "panel_width"]

_TOKENS = 256
"""Tokens of a slab, about: their activations fit the second-level cache."""


@dataclass(frozen=True)
class Slab:
    """Sequences that go through the plan together."""

    rows: NDArray[np.intp]  # rows of the batch
    starts: NDArray[np.intp]  # first token of each
    lengths: NDArray[np.intp]
    origin: NDArray[np.int32]  # per token: its place in the flat batch, -1 for filling and padding
    width: int

    @property
    def tokens(self) -> int:
        """Tokens, filling among them."""
        return len(self.origin)


@dataclass(frozen=True)
class Cut:
    """How batches are cut.

    Args:
        widest: Tokens of the widest panel.
        threads: Threads to keep busy.
        by_distance: Whether padding between real tokens keeps its place.
    """

    widest: int
    threads: int
    by_distance: bool

    def slabs(self, mask: NDArray[np.bool_]) -> list[Slab]:
        """Slabs of a batch: one for all if that keeps every thread busier.

        Args:
            mask: bool [batch, sequence], False for padding.
        """
        lengths, space = self._lengths(mask)
        total = int(space.sum())
        if len(lengths) < self.threads or total <= _TOKENS // 2:
            return [self.whole(mask)]
        limit = max(_TOKENS // 2, min(_TOKENS, -(-total // self.threads)))
        groups: list[list[int]] = [[]]
        used = 0
        for row in np.argsort(-lengths, kind="stable"):
            if used and used + space[row] > limit:
                groups.append([])
                used = 0
            groups[-1].append(int(row))
            used += int(space[row])
        return [self._slab(mask, np.array(group), lengths, space) for group in groups]

    def whole(self, mask: NDArray[np.bool_]) -> Slab:
        """All sequences in one slab."""
        lengths, space = self._lengths(mask)
        return self._slab(mask, np.arange(len(mask)), lengths, space)

    def _lengths(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Tokens of each sequence, and those that it takes in a slab."""
        lengths = (_spanned(mask) if self.by_distance else mask).sum(1)
        return lengths, -(-lengths // CHUNK) * CHUNK

    def _slab(
        self,
        mask: NDArray[np.bool_],
        rows: NDArray[np.intp],
        lengths: NDArray[np.intp],
        space: NDArray[np.intp],
    ) -> Slab:
        starts = np.concatenate([[0], np.cumsum(space[rows])])
        total = int(starts[-1])
        origin = np.full(in_panels(total, self.widest), -1, np.int32)
        sequence = mask.shape[1]
        for row, start in zip(rows, starts[:-1], strict=True):
            places = np.flatnonzero(mask[row])
            inside = places - places[0] if self.by_distance else np.arange(len(places))
            origin[start + inside] = row * sequence + places
        width = panel_width(total, self.widest)
        return Slab(rows, starts[:-1], lengths[rows], origin, width)


def panel_width(tokens: int, widest: int) -> int:
    """The narrowest panel that holds all tokens, the widest if none does."""
    return next((w for w in (16, 32) if tokens <= w), widest)


def in_panels(tokens: int, widest: int) -> int:
    """Tokens rounded up to whole panels.

    >>> in_panels(20, 64), in_panels(65, 64)
    (32, 128)
    """
    width = panel_width(tokens, widest)
    return -(-tokens // width) * width


def _spanned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All tokens from the first real one of each sequence to the last."""
    seen = np.maximum.accumulate(mask, axis=1)
    ahead = np.maximum.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(seen & ahead)
