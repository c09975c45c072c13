"""Attention whose scores are int8 products, for models whose queries and keys are quantized.

Query and key come as the uint8 codes of their quantizers, so that the scores are the exact integers
of the model (see `attention_codes`). These products take four channels at once (`vpdpbusd`):

    q, k     [channels / 4] [tokens] [4]      score[key][query] += q vector . broadcast of 4 k
"""

from __future__ import annotations

from functools import partial

from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.kernels.attention import CHUNK, open_attention
from sparsefx.backends.cpu.kernels.attention_codes import (
    FIELDS,
    Head,
    attend,
    each_chunk,
    interleave,
    open_head,
    scaled,
    start_sums,
)
from sparsefx.backends.cpu.kernels.context import SCORE_BYTES
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "scratch_bytes"]

_LANES = 16
_INTS = vector(_LANES, "i32")
_BLOCK = 8


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // CHUNK) * CHUNK + 128  # whole panels of up to 64
    return (2 * head_size + 4 + SCORE_BYTES) * tokens + 1024


def emit(isa: Isa, width: int, *, by_distance: bool = False) -> Function:
    """The kernel for one instruction set with `vpdpbusd` and 512-bit vectors."""
    frame = open_attention("attention_i8", isa, width, FIELDS, by_distance=by_distance)
    for place in Place.each(frame, items={"q": 1, "k": 1}):
        head = open_head(place, isa, _sizes, by_distance=by_distance)
        interleave(head, "q")
        interleave(head, "k")
        start_sums(head)
        each_chunk(head, partial(_chunk, head))
    return frame.f


def _sizes(size: Value, padded: Value, tokens: Value) -> dict[str, Value]:
    """Bytes of the parts of the scratch memory."""
    return {
        "whole_q": size * tokens,
        "whole_k": size * tokens,
        "start": padded * 4,
        "scores": padded * SCORE_BYTES,
    }


def _chunk(head: Head, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    _scores(head, query, vectors)
    attend(head, query, vectors)


def _scores(head: Head, query: Value, vectors: int) -> None:
    """Scores of all keys as fp32, already scaled."""
    f, panel = head.f, head.panel
    factor = f.splat(head.place.frame.number("scale"), _LANES)
    line = head.tokens * 4
    for key in f.loop(0, head.padded, _BLOCK):
        starts = f.offset(head.parts["start"], key * 4)
        sums = []
        for n in range(_BLOCK):
            seed = f.splat(f.index("i32", starts, n), _LANES)
            sums.append([f.var(seed) for _ in range(vectors)])
        for group in f.loop(0, head.size // 4):
            queries = f.offset(head.parts["q"], group * line + query * 4)
            values = [f.load(_INTS, f.offset(queries, 64 * n), 64) for n in range(vectors)]
            keys = f.offset(head.parts["k"], group * line + key * 4)
            for n, row in enumerate(sums):
                weight = f.splat(f.index("i32", keys, n), _LANES)
                for total, value in zip(row, values, strict=True):
                    total.set(panel.dot(f, total.get(), value, weight))
        for n, row in enumerate(sums):
            for m, total in enumerate(row):
                score = scaled(head, total.get(), factor, (query, m * CHUNK), (key, n))
                f.store(score, head.scores.at(key + n, vectors, m), 64)
