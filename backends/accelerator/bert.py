"""Workloads of BERT-class encoders from their sizes alone, for architects without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsefx.backends.accelerator.engines.base import BoolArray
from sparsefx.backends.accelerator.workload import MatmulOp, Op, VectorOp, Workload

__all__ = ["EncoderSize", "Zeros", "balanced_mask", "draw_mask", "encoder_workload"]

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


def draw_mask(
    rows: int, columns: int, ratio: float, zeros: Zeros, rng: np.random.Generator
) -> BoolArray:
    """Non-zeros of one matrix, `[rows, columns]`, dense over remaining weights being `ratio`."""
    if zeros == "balanced":
        return balanced_mask(rows, columns, ratio, rng)
    if zeros == "n-of-m":
        group = max(round(2 * ratio), 2)
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
    """
    rng = np.random.default_rng(seed)
    ops: list[Op] = []

    drawn: dict[tuple[int, int], BoolArray] = {}

    def mask_of(n: int, k: int) -> BoolArray | None:
        if ratio <= 1:
            return None
        if distinct or (n, k) not in drawn:
            drawn[n, k] = draw_mask(n, k, ratio, zeros, rng)
        return drawn[n, k]

    def linear(name: str, n: int, k: int, source: str) -> str:
        ops.append(MatmulOp(name, batch * tokens, n, k, (source,), mask=mask_of(n, k)))
        return name

    def vector(name: str, kind: str, elements: int, inputs: tuple[str, ...], **more: bool) -> str:
        ops.append(VectorOp(name, kind, elements, inputs, **more))
        return name

    hidden = ""
    state = batch * tokens * size.hidden
    for layer in range(size.layers):
        at = f"layer{layer}."
        q, k, v = (linear(at + x, size.hidden, size.hidden, hidden) for x in ("q", "k", "v"))
        copies, head = batch * size.heads, size.hidden // size.heads
        sizes = tokens, tokens, head
        ops.append(MatmulOp(at + "scores", *sizes, (q, k), copies, stationary=False))
        ops.append(
            VectorOp(at + "softmax", "softmax", copies * tokens**2, (at + "scores",), copies, True)
        )
        sizes = tokens, head, tokens
        made = at + "softmax", v
        ops.append(MatmulOp(at + "context", *sizes, made, copies, stationary=False))
        out = linear(at + "out", size.hidden, size.hidden, at + "context")
        first = vector(at + "add1", "add", state, (out, hidden))
        first = vector(at + "norm1", "layer-norm", state, (first,), rowwise=True)
        up = linear(at + "up", size.feed_forward, size.hidden, first)
        gelu = vector(at + "gelu", "gelu", batch * tokens * size.feed_forward, (up,))
        down = linear(at + "down", size.hidden, size.feed_forward, gelu)
        second = vector(at + "add2", "add", state, (down, first))
        hidden = vector(at + "norm2", "layer-norm", state, (second,), rowwise=True)
    name = f"encoder {size.layers} x {size.hidden}, {batch} x {tokens} tokens, {ratio:g}x"
    return Workload(name, tuple(ops), batch, tokens)
