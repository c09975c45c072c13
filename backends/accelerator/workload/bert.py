"""Workloads of BERT-class encoders from their sizes alone, for architects without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sparsefx.backends.accelerator.engines.base import BoolArray
from sparsefx.backends.accelerator.workload.operations import MatmulOp, Op, VectorOp, Workload
from sparsefx.errors import TargetError

__all__ = [
    "EncoderSize",
    "Zeros",
    "balanced_mask",
    "check_ratio",
    "draw_mask",
    "encoder_workload",
]

Zeros = Literal["random", "balanced", "n-of-m", "block"]
"""How zeros are drawn.

random: independently. balanced: as many in every row of a bank of 64. n-of-m: two of every
`2 x ratio` neighbours along k stay, 2:4 for ratio 2. block: whole blocks of 1 x 16.
"""


@dataclass(frozen=True)
class EncoderSize:
    """Sizes of an encoder; the default is BERT-base."""

    layers: int = 12
    hidden: int = 768
    feed_forward: int = 3072
    heads: int = 12

    @staticmethod
    def large() -> EncoderSize:
        """BERT-large."""
        return EncoderSize(24, 1024, 4096, 16)


def random_mask(rows: int, columns: int, density: float, rng: np.random.Generator) -> BoolArray:
    """Independent non-zeros, `[rows, columns]`."""
    return rng.random((rows, columns), dtype=np.float32) < density


def balanced_mask(
    rows: int, columns: int, ratio: float, rng: np.random.Generator, bank: int = 64
) -> BoolArray:
    """Non-zeros at random places, as many in every row of a bank: `bank / ratio` on average."""
    banks = -(-columns // bank)
    ends = np.minimum(np.arange(banks + 1) * bank, columns)  # the last bank may be narrower
    edges = np.round(ends / ratio).astype(np.int64)
    keep = np.diff(edges)[None, :, None]
    drawn = rng.random((rows, banks * bank), dtype=np.float32)
    drawn[:, columns:] = 2  # comes last and is cut off
    order = drawn.reshape(rows, banks, bank).argsort(axis=2)
    mask: BoolArray = (order < keep).reshape(rows, banks * bank)[:, :columns]
    return mask


def check_ratio(ratio: float, zeros: str) -> None:
    """Refuse a compression that a kind of zeros has no pattern for.

    Raises:
        TargetError: It is not between 1 and 1e6; for zeros of n-of-m, 2 x ratio is no integer.
    """
    if not 1 <= ratio <= 1e6:
        raise TargetError(
            "dense weights over those that are left are between 1 (dense) and 1e6",
            who="accelerator",
            where=f"ratio {ratio:g}",
        )
    group = 2 * ratio
    if zeros != "n-of-m" or group == int(group):
        return
    raise TargetError(
        f"n-of-m keeps 2 of every 2 x ratio weights, and {group:g} are no number of weights",
        who="accelerator",
        where=f"ratio {ratio:g}",
        hint=f"the nearest are {int(group) / 2:g} and {(int(group) + 1) / 2:g}",
    )


def draw_mask(
    rows: int, columns: int, ratio: float, zeros: Zeros, rng: np.random.Generator
) -> BoolArray:
    """Non-zeros of one matrix, `[rows, columns]`, dense over remaining weights being `ratio`."""
    if zeros == "balanced":
        return balanced_mask(rows, columns, ratio, rng)
    if zeros == "n-of-m":
        group = round(2 * ratio)
        return balanced_mask(rows, columns, group / 2, rng, group)
    if zeros == "block":
        blocks = random_mask(rows, -(-columns // 16), 1 / ratio, rng)
        return np.repeat(blocks, 16, axis=1)[:, :columns]
    return random_mask(rows, columns, 1 / ratio, rng)


def encoder_workload(
    size: EncoderSize,
    *,
    batch: int = 1,
    tokens: int = 128,
    ratio: float = 1.0,
    zeros: Zeros = "balanced",
    distinct: bool = True,
    seed: int = 0,
) -> Workload:
    """An encoder's linears, attention products and vector operations.

    Args:
        size: The encoder's sizes.
        batch: Sequences at once.
        tokens: Tokens of a sequence.
        ratio: Dense weights over those that are left, 1 for dense.
        zeros: How they are drawn.
        distinct: Draw new non-zeros for every layer; else one mask serves all of a shape.
        seed: For the places of the non-zeros.

    Raises:
        TargetError: When there are no such zeros of this ratio.
    """
    check_ratio(ratio, zeros)
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, int], BoolArray] = {}

    def mask_of(n: int, k: int) -> BoolArray | None:
        if ratio == 1:
            return None
        if distinct or (n, k) not in drawn:
            drawn[n, k] = draw_mask(n, k, ratio, zeros, rng)
        return drawn[n, k]

    encoder = _Encoder(size, batch, tokens, mask_of)
    hidden = ""
    for layer in range(size.layers):
        hidden = encoder.layer(f"layer{layer}.", hidden)
    kind = f"{ratio:g}x {zeros}" if ratio > 1 else "dense"
    name = f"encoder {size.layers} x {size.hidden}, {batch} x {tokens} tokens, {kind}"
    return Workload(name, tuple(encoder.ops), batch, tokens)


@dataclass
class _Encoder:
    """Collects the operations of an encoder; its methods return the names of the results."""

    size: EncoderSize
    batch: int
    tokens: int
    mask_of: Callable[[int, int], BoolArray | None]
    ops: list[Op] = field(default_factory=list)

    def linear(self, name: str, n: int, k: int, source: str) -> str:
        rows, mask = self.batch * self.tokens, self.mask_of(n, k)
        self.ops.append(MatmulOp(name, rows, n, k, (source,), mask=mask))
        return name

    def product(self, name: str, n: int, k: int, sources: tuple[str, str]) -> str:
        """A product of activations in every head."""
        copies = self.batch * self.size.heads
        self.ops.append(MatmulOp(name, self.tokens, n, k, sources, copies, stationary=False))
        return name

    def vector(self, name: str, kind: str, width: int, *sources: str) -> str:
        """An operation on `width` values of every token."""
        elements, rowwise = self.batch * self.tokens * width, kind == "layer-norm"
        self.ops.append(VectorOp(name, kind, elements, sources, rowwise=rowwise))
        return name

    def softmax(self, name: str, scores: str) -> str:
        copies = self.batch * self.size.heads
        self.ops.append(VectorOp(name, "softmax", copies * self.tokens**2, (scores,), copies, True))
        return name

    def layer(self, at: str, hidden: str) -> str:
        width, inner = self.size.hidden, self.size.feed_forward
        head = width // self.size.heads
        q, k, v = (self.linear(at + x, width, width, hidden) for x in ("q", "k", "v"))
        scores = self.product(at + "scores", self.tokens, head, (q, k))
        softmax = self.softmax(at + "softmax", scores)
        context = self.product(at + "context", head, self.tokens, (softmax, v))
        out = self.linear(at + "out", width, width, context)
        first = self.vector(at + "add1", "add", width, out, hidden)
        first = self.vector(at + "norm1", "layer-norm", width, first)
        up = self.linear(at + "up", inner, width, first)
        gelu = self.vector(at + "gelu", "gelu", inner, up)
        down = self.linear(at + "down", width, inner, gelu)
        second = self.vector(at + "add2", "add", width, down, first)
        return self.vector(at + "norm2", "layer-norm", width, second)
