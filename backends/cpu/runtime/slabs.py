"""Packs the real tokens of a batch and cuts them into slabs, which go through a plan together.

    batch [B, S] with padding          slabs of panels of 64 tokens
    a a a a a . . .                    | aaaaa........... bbb.............|  (sequences start at
    b b b . . . . .        ----->      | cccccccc........ ...............|   multiples of 16)
    c c c c c c c c

Where attention asks for the distance of tokens, padding between real tokens keeps its place and is
hidden as a key; elsewhere, as at both ends, it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.kernels.attention import CHUNK

__all__ = ["Cut", "Slab", "in_panels", "panel_width"]

_LEAST, _MOST = 128, 256
"""Tokens of a slab, about."""

_NEAR = 4 << 20
"""Bytes of activations beyond which a slab is as small as fills its panels. With 128 in place of
256 tokens BERT-base in fp32 took 0.87 of the time while neighbours used the third-level cache, else
as long; int8, which has 3 MB, took 0.95 with full panels and 1.03 with texts of many lengths."""


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
        token_bytes: Bytes of activations that the plan holds for a token.
        by_distance: Whether padding between real tokens keeps its place.
    """

    widest: int
    threads: int
    token_bytes: int
    by_distance: bool

    def slabs(self, mask: NDArray[np.bool_]) -> list[Slab]:
        """Slabs of a batch: one for all if that keeps every thread busier.

        Args:
            mask: bool [batch, sequence], False for padding.
        """
        lengths, space = self._lengths(mask)
        total = int(space.sum())
        if len(lengths) < self.threads or total <= _LEAST:
            return [self.whole(mask)]
        most = max(_LEAST, min(_MOST, -(-total // self.threads)))
        longest_first = np.argsort(-lengths, kind="stable")
        groups = self._groups(longest_first, space[longest_first], most)
        return [self._slab(mask, group, lengths, space) for group in groups]

    def _groups(
        self, rows: NDArray[np.intp], space: NDArray[np.intp], most: int
    ) -> Iterator[NDArray[np.intp]]:
        """Consecutive rows: `most` tokens if these are near, else as many as fill panels best."""
        least = _LEAST if self.token_bytes * _MOST > _NEAR else most
        first = 0
        while first < len(rows):
            tokens = np.cumsum(space[first : first + most // CHUNK])
            tokens = tokens[: max(1, int(np.searchsorted(tokens, most, side="right")))]
            count = len(tokens)
            if tokens[-1] > least:
                full = tokens / (-(-tokens // self.widest) * self.widest)
                count = int(np.argmax(np.where(tokens >= least, full, 0.0))) + 1
            yield rows[first : first + count]
            first += count

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
