"""The plan: what a Program became, as data. Steps in order, buffers in one arena.

A plan knows no batch size and no sequence length: buffers are sized in bytes per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.plan.catalog import Kernel

__all__ = [
    "SEQUENCES",
    "TOKENS",
    "Arena",
    "Buffer",
    "Plan",
    "Step",
    "Word",
    "pack_arena",
    "word_bits",
]

TOKENS, SEQUENCES = 0, 1
"""Spaces: one column per token, or one per sequence."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """Rows of one value per token.

    Attributes:
        name: The graph node whose value it holds.
        rows: Channels.
        item: Bytes of one value: 4 (fp32), 2 (bf16, fp16) or 1 (uint8).
        space: TOKENS or SEQUENCES.
    """

    name: str
    rows: int
    item: int
    space: int = TOKENS

    @property
    def token_bytes(self) -> int:
        """Bytes per token."""
        return self.rows * self.item


Word = int | float | Buffer | NDArray[Any]


@dataclass(frozen=True)
class Step:
    """One kernel call.

    Attributes:
        kernel: Which kernel.
        words: Its arguments by name. A Buffer becomes its offset, an array its address.
        node: The graph nodes it computes.
        facts: What `cost()` tells: multiply-adds of non-zeros per token (`macs`), and others.
    """

    kernel: Kernel
    words: Mapping[str, Word]
    node: str
    facts: dict[str, float] = field(default_factory=dict)

    def buffers(self) -> list[Buffer]:
        """The buffers it touches."""
        return [word for word in self.words.values() if isinstance(word, Buffer)]


@dataclass(frozen=True)
class Plan:
    """Steps, the index tensors they read and the results they write.

    Attributes:
        steps: In order.
        indices: Graph nodes that give the index of each token for an embedding, by table slot.
        results: Output name -> (table slot, channels, space).
    """

    steps: tuple[Step, ...]
    indices: tuple[str, ...]
    results: dict[str, tuple[int, int, int]]

    @property
    def picks(self) -> bool:
        """Whether the first token of a sequence is read by itself, as heads for classes do.

        Padding in its place is left out: the plan then reads the first real token.
        """
        return any(step.kernel.kind == "pick" for step in self.steps)


@dataclass(frozen=True)
class Arena:
    """Where each buffer starts, in bytes per token, and the size of each space.

    Buffers start at whole words of four bytes per token: kernels store vectors of 64 bytes at their
    alignment, and the narrowest panel has 16 tokens.
    """

    offsets: dict[Buffer, int]
    token_bytes: tuple[int, int]


def pack_arena(steps: Sequence[Step]) -> Arena:
    """Give buffers that are never alive together the same memory (first fit, largest first)."""
    lives: dict[Buffer, list[int]] = {}
    for number, step in enumerate(steps):
        for buffer in step.buffers():
            lives.setdefault(buffer, [number, number])[1] = number
    offsets: dict[Buffer, int] = {}
    size = [0, 0]
    for buffer in sorted(lives, key=lambda b: -b.token_bytes):
        start, stop = lives[buffer]
        taken = sorted(
            (offsets[b], offsets[b] + _in_words(b))
            for b in offsets
            if b.space == buffer.space and lives[b][0] <= stop and start <= lives[b][1]
        )
        offsets[buffer] = _first_gap(taken, _in_words(buffer))
        size[buffer.space] = max(size[buffer.space], offsets[buffer] + _in_words(buffer))
    return Arena(offsets, (size[0], size[1]))


def _in_words(buffer: Buffer) -> int:
    """Bytes per token that a buffer takes."""
    return -(-buffer.token_bytes // 4) * 4


def _first_gap(taken: Iterable[tuple[int, int]], needed: int) -> int:
    place = 0
    for start, stop in taken:
        if start - place >= needed:
            break
        place = max(place, stop)
    return place


def word_bits(word: Word, arena: Arena) -> int:
    """A word as the 64 bits that the kernel reads."""
    if isinstance(word, Buffer):
        return arena.offsets[word]
    if isinstance(word, np.ndarray):
        return int(word.ctypes.data)
    if isinstance(word, float):
        return int(np.float32(word).view(np.uint32))
    return int(word)
