"""Attention in int8 products, for models whose queries, keys and values are quantized.

Query and key come as the uint8 codes of their quantizers, so that the scores are the exact integers
of the model (see `attention_codes`). These products take four channels at once (`vpdpbusd`).

Values, which the model does not quantize, and softmax weights become int16, two keys at once
(`vpdpwssd`): weights lie in 0..1 with their maximum at 1 and have 4096 steps, and their sum is
taken after rounding, so that they still add up to 1; values have one scale per channel of a head
and as many steps as int32 sums over all keys allow (32767 up to 15 keys, 4095 for 128, 1023 for
512).
With uint8 weights and int8 values 0.5 to 0.7 % of the classes of a trained sparse int8 model were
others than with fp32 products (`cpu{attention='fp32'}`): a small change of a value moves the
codes of later layers.

    q, k     [channels / 4] [tokens] [4]      score[key][query] += q vector . broadcast of 4 k
    weights  [keys / 2] [queries] [2]         context[c][query] += weights vector . broadcast of 2 v
    v        [channels] [keys]
"""

from __future__ import annotations

from functools import partial

from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.attention import CHUNK, open_attention
from sparsefx.backends.cpu.kernels.attention_codes import (
    FIELDS,
    Head,
    each_chunk,
    exp_levels,
    interleave,
    open_head,
    scaled,
    start_sums,
    values,
)
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.vmath import maximum

__all__ = ["FIELDS", "emit", "scratch_bytes"]

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_BLOCK = 8


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // CHUNK) * CHUNK + 128  # whole panels of up to 64
    return (10 * head_size + 200) * tokens + 4 * head_size + 1024


def emit(isa: Isa, width: int, *, by_distance: bool = False) -> Function:
    """The kernel for one instruction set with `vpdpbusd` and 512-bit vectors."""
    frame = open_attention("attention_i8", isa, width, FIELDS, by_distance=by_distance)
    for place in Place.each(frame, items={"q": 1, "k": 1}):
        head = open_head(place, isa, _sizes, by_distance=by_distance)
        interleave(head, "q")
        interleave(head, "k")
        start_sums(head)
        values(head, partial(_keep, head))
        each_chunk(head, partial(_chunk, head))
    return frame.f


def _sizes(size: Value, padded: Value, tokens: Value) -> dict[str, Value]:
    """Bytes of the parts of the scratch memory."""
    return {
        "whole_q": size * tokens,
        "whole_k": size * tokens,
        "v": size * padded * 2,
        "v_scale": size * 4,
        "start": padded * 4,
        "scores": padded * 128,
        "weights": padded * 64,
    }


def _keep(head: Head, channel: Value, token: Value, whole: Value) -> None:
    f = head.f
    small = f.convert("trunc", whole, vector(_LANES, "i16"))
    target = f.offset(head.parts["v"], (channel * head.padded + token) * 2)
    f.store(small, target, 2 * CHUNK)


def _chunk(head: Head, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    f = head.f
    _scores(head, query, vectors)
    filling = f.const(_FLOATS, -1e30)
    for key in f.loop(head.place.length, (head.place.length + 1) // 2 * 2):
        for n in range(vectors):
            f.store(filling, _score(head, key, vectors, n), 64)
    sums = _softmax(head, vectors)
    _context(head, query, sums)


def _score(head: Head, key: Value, vectors: int, number: int) -> Value:
    return head.f.offset(head.parts["scores"], key * (64 * vectors) + 64 * number)


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
                f.store(score, _score(head, key + n, vectors, m), 64)


def _softmax(head: Head, vectors: int) -> list[Value]:
    """Scores to int16 weights, two keys together; gives the sums of the rounded weights."""
    f = head.f
    tops = [f.var(f.const(_FLOATS, -3e38)) for _ in range(vectors)]
    for key in f.loop(0, head.place.length):
        for n, top in enumerate(tops):
            top.set(maximum(f, f.load(_FLOATS, _score(head, key, vectors, n), 64), top.get()))
    sums = [f.var(f.const(_INTS, 0)) for _ in range(vectors)]
    for group in f.loop(0, (head.place.length + 1) // 2):
        for n in range(vectors):
            two = []
            for m in range(2):
                score = f.load(_FLOATS, _score(head, group * 2 + m, vectors, n), 64)
                two.append(exp_levels(head, score - tops[n].get()))
                sums[n].set(sums[n].get() + two[-1])
            target = f.offset(head.parts["weights"], group * (64 * vectors) + 64 * n)
            f.store(two[0] | (two[1] << 16), target, 64)
    return [f.convert("sitofp", s.get(), _FLOATS) for s in sums]


def _context(head: Head, query: Value, sums: list[Value]) -> None:
    """context[channel][query] = weights . v, back to fp32."""
    f = head.f
    one = f.const(_FLOATS, 1.0)
    factors = [one / s for s in sums]
    place = head.place
    targets = [place.at("output", place.first + query + n * CHUNK) for n in range(len(sums))]
    whole = head.size // _BLOCK * _BLOCK
    for channel in f.loop(0, whole, _BLOCK):
        _channels(head, targets, factors, channel, _BLOCK)
    for channel in f.loop(whole, head.size):
        _channels(head, targets, factors, channel, 1)


def _channels(
    head: Head, targets: list[Value], factors: list[Value], channel: Value, count: int
) -> None:
    f, panel = head.f, head.panel
    vectors = len(targets)
    sums = [[f.var(f.const(_INTS, 0)) for _ in range(vectors)] for _ in range(count)]
    rows = [f.offset(head.parts["v"], (channel + n) * head.padded * 2) for n in range(count)]
    for group in f.loop(0, (head.place.length + 1) // 2):
        line = f.offset(head.parts["weights"], group * (64 * vectors))
        weights = [f.load(_INTS, f.offset(line, 64 * n), 64) for n in range(vectors)]
        for row, totals in zip(rows, sums, strict=True):
            two = f.splat(f.load("i32", f.offset(row, group * 4)), _LANES)
            for total, weight in zip(totals, weights, strict=True):
                total.set(panel.dot_words(f, total.get(), weight, two))
    step = head.place.frame.panel.row_bytes
    for n, totals in enumerate(sums):
        scale = f.splat(f.load("float", f.offset(head.parts["v_scale"], (channel + n) * 4)), _LANES)
        for target, total, factor in zip(targets, totals, factors, strict=True):
            value = f.convert("sitofp", total.get(), _FLOATS) * (scale * factor)
            f.store(value, f.offset(target, (channel + n) * step), 64)
