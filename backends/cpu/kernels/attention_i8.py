"""Attention in int8 products, for models whose queries, keys and values are quantized.

Query, key and value come as the uint8 codes of their quantizers, so that the scores are the exact
integers of the model. With q = sq (a - za), k = sk (b - zb) and k' = b - 128 as int8

    score = sq sk (sum of a k' - za sum of k') + what is the same for all keys of a query,

and softmax does not see the last part. Softmax weights, which lie in 0..1 with their maximum at 1,
become uint8 in steps of 1/255, and their sum is taken after rounding, so that they still add up
to 1: this rounding is the only difference from fp32 products (`cpu{attention='fp32'}`). Four
channels, or four keys, go into one `vpdpbusd`:

    q, k     [channels / 4] [tokens] [4]      score[key][query] += q vector . broadcast of 4 k
    weights  [keys / 4] [queries] [4]         context[c][query] += weights vector . broadcast of 4 v
    v        [channels] [keys]

A sequence may start and end inside a panel: the scratch memory holds whole panels, and the parts
named below start at the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsefx.backends.cpu.frame import open_frame
from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.attention import CHUNK, Place
from sparsefx.backends.cpu.kernels.attention import FIELDS as FLOAT_FIELDS
from sparsefx.backends.cpu.panel import Panel, pack_order
from sparsefx.backends.cpu.vmath import maximum, polynomial

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]

FIELDS = (*FLOAT_FIELDS, "q_zero", "v_scale", "v_offset")
"""`scale` is that of the codes' products; v = v_scale (code - 128) + v_offset."""

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_BLOCK = 8
_LEVELS = 255.0
_SIGNS = -0x7F7F7F80  # 0x80808080: flips uint8 to int8 in four bytes at once
_ONES = 0x01010101


def symbol(isa: Isa, width: int) -> str:
    """Name of the kernel."""
    return f"attention_i8_{isa.name}_w{width}"


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // CHUNK) * CHUNK + 128  # whole panels of up to 64
    return (9 * head_size + 164) * tokens + 1024


@dataclass(frozen=True)
class _Head:
    """One head of one sequence: where it lies, and the parts of the scratch memory.

    Attributes:
        padded: Its length rounded up to whole chunks.
        panels: Panels that it touches.
        tokens: Tokens of these panels.
        parts: Pointers; those of q, k and v point at the sequence, `whole_*` at the first panel.
    """

    place: Place
    panel: Panel
    size: Value
    padded: Value
    panels: Value
    tokens: Value
    parts: dict[str, Value]

    @property
    def f(self) -> Function:
        return self.place.frame.f


def emit(isa: Isa, width: int) -> Function:
    """The kernel for one instruction set with `vpdpbusd` and 512-bit vectors."""
    frame = open_frame(symbol(isa, width), Panel(isa, width), FIELDS)
    for place in Place.each(frame, item=1):
        head = _head(place, isa)
        _interleave(head, "q")
        _interleave(head, "k")
        _start(head)
        _values(head)
        _queries(head)
    return frame.f


def _head(place: Place, isa: Isa) -> _Head:
    """Divide the scratch memory; every part starts at a cache line."""
    frame, f = place.frame, place.frame.f
    width = frame.panel.width
    size = frame.word("head_size")
    padded = (place.length + (CHUNK - 1)) // CHUNK * CHUNK
    number = place.first // width
    shift = place.first - number * width
    panels = (shift + padded + (width - 1)) // width
    tokens = panels * width
    sizes = {
        "whole_q": size * tokens,
        "whole_k": size * tokens,
        "whole_v": size * tokens,
        "start": padded * 4,
        "scores": padded * 128,
        "weights": padded * 32,
    }
    parts, here = {}, f.i64(0)
    for name, amount in sizes.items():
        parts[name] = f.offset(frame.job("scratch"), here)
        here = here + (amount + 63) // 64 * 64
    for name, item in (("q", 4), ("k", 4), ("v", 1)):
        parts[name] = f.offset(parts[f"whole_{name}"], shift * item)
    return _Head(place, Panel(isa, 64), size, padded, panels, tokens, parts)


def _row(head: _Head, name: str, number: Value, channel: Value) -> Value:
    """The bytes of one channel of q, k or v in panel `number` of the sequence."""
    f, place = head.f, head.place
    width = place.frame.panel.width
    first = place.first // width
    start = f.offset(place.starts[name], (first + number) * place.rows[name] * width)
    return f.load(vector(width, "i8"), f.offset(start, channel * width), width)


def _interleave(head: _Head, name: str) -> None:
    """Codes of q, or of k as int8, with four channels together; tokens in order."""
    f, panel = head.f, head.place.frame.panel
    signs = f.const(panel.ints, _SIGNS)
    for group in f.loop(0, head.size // 4):
        line = f.offset(head.parts[f"whole_{name}"], group * head.tokens * 4)
        for number in f.loop(0, head.panels):
            rows = [_row(head, name, number, group * 4 + n) for n in range(4)]
            target = f.offset(line, number * (panel.width * 4))
            for n, mixed in enumerate(panel.quads(f, rows)):
                value = f.operate("xor", mixed, signs) if name == "k" else mixed
                f.store(value, f.offset(target, n * panel.width), panel.width)


def _start(head: _Head) -> None:
    """What the sum of each key starts with: -zero point of q * sum of its int8 codes."""
    f = head.f
    zero = f.splat(f.convert("trunc", head.place.frame.word("q_zero"), "i32"), _LANES)
    ones = f.const(_INTS, _ONES)
    for token in f.loop(0, head.padded, CHUNK):
        total = f.var(f.const(_INTS, 0))
        for group in f.loop(0, head.size // 4):
            codes = f.offset(head.parts["k"], (group * head.tokens + token) * 4)
            four = f.load(_INTS, codes, 64)
            total.set(head.panel.dot(f, total.get(), ones, four))
        start = f.const(_INTS, 0) - total.get() * zero
        f.store(start, f.offset(head.parts["start"], token * 4), 64)


def _values(head: _Head) -> None:
    """Codes of v as int8 [channels][keys], keys in order.

    In pack order four neighbouring bytes are four tokens in order: only fours change places.
    """
    f, panel = head.f, head.place.frame.panel
    fours = vector(panel.width // 4, "i32")
    place_of = {int(t) // 4: n for n, t in enumerate(pack_order(panel.width, panel.isa)[::4])}
    order = [place_of[n] for n in range(panel.width // 4)]
    for channel in f.loop(0, head.size):
        line = f.offset(head.parts["whole_v"], channel * head.tokens)
        for number in f.loop(0, head.panels):
            row = f.convert("bitcast", _row(head, "v", number, channel), fours)
            signed = f.operate("xor", f.shuffle(row, row, order), f.const(fours, _SIGNS))
            f.store(signed, f.offset(line, number * panel.width), panel.width)


def _queries(head: _Head) -> None:
    f = head.f
    chunks = head.padded // CHUNK
    pairs = chunks // 2
    for pair in f.loop(0, pairs):
        _chunk(head, pair * (2 * CHUNK), 2)
    for chunk in f.loop(pairs * 2, chunks):
        _chunk(head, chunk * CHUNK, 1)


def _chunk(head: _Head, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    f = head.f
    _scores(head, query, vectors)
    filling = f.const(_FLOATS, -1e30)
    for key in f.loop(head.place.length, (head.place.length + 3) // 4 * 4):
        for n in range(vectors):
            f.store(filling, _score(head, key, vectors, n), 64)
    sums = _softmax(head, vectors)
    _context(head, query, sums)


def _score(head: _Head, key: Value, vectors: int, number: int) -> Value:
    return head.f.offset(head.parts["scores"], key * (64 * vectors) + 64 * number)


def _scores(head: _Head, query: Value, vectors: int) -> None:
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
                score = f.convert("sitofp", total.get(), _FLOATS) * factor
                f.store(score, _score(head, key + n, vectors, m), 64)


def _softmax(head: _Head, vectors: int) -> list[Value]:
    """Scores to uint8 weights, four keys together; gives the sums of the rounded weights."""
    f = head.f
    tops = [f.var(f.const(_FLOATS, -3e38)) for _ in range(vectors)]
    for key in f.loop(0, head.place.length):
        for n, top in enumerate(tops):
            top.set(maximum(f, f.load(_FLOATS, _score(head, key, vectors, n), 64), top.get()))
    sums = [f.var(f.const(_INTS, 0)) for _ in range(vectors)]
    for group in f.loop(0, (head.place.length + 3) // 4):
        for n in range(vectors):
            four = []
            for m in range(4):
                score = f.load(_FLOATS, _score(head, group * 4 + m, vectors, n), 64)
                four.append(_exp_levels(head, score - tops[n].get()))
                sums[n].set(sums[n].get() + four[-1])
            target = f.offset(head.parts["weights"], group * (64 * vectors) + 64 * n)
            total = four[0]
            for m, value in enumerate(four[1:], 1):
                total = total | (value << (8 * m))
            f.store(total, target, 64)
    return [f.convert("sitofp", s.get(), _FLOATS) for s in sums]


def _exp_levels(head: _Head, x: Value) -> Value:
    """round(255 e**x) for x <= 0: a cubic, whose error of 1e-4 is a fortieth of a step."""
    f, panel = head.f, head.panel
    scaled = maximum(f, x * math.log2(math.e), f.const(x.type, -20.0))
    whole = panel.round_to_int(f, scaled)
    rest = scaled - f.convert("sitofp", whole, _FLOATS)
    cubic = (0.99992807, 0.69326098, 0.24261112, 0.0517177)
    power = polynomial(f, rest, [_LEVELS * c for c in cubic])
    exact = f.convert("bitcast", f.convert("bitcast", power, _INTS) + (whole << 23), _FLOATS)
    return panel.round_to_int(f, exact)


def _context(head: _Head, query: Value, sums: list[Value]) -> None:
    """context[channel][query] = weights . v, back to fp32."""
    f = head.f
    scale = f.splat(head.place.frame.number("v_scale"), _LANES)
    factors = [scale / s for s in sums]
    place = head.place
    targets = [place.at("output", place.first + query + n * CHUNK) for n in range(len(sums))]
    whole = head.size // _BLOCK * _BLOCK
    for channel in f.loop(0, whole, _BLOCK):
        _channels(head, targets, factors, channel, _BLOCK)
    for channel in f.loop(whole, head.size):
        _channels(head, targets, factors, channel, 1)


def _channels(
    head: _Head, targets: list[Value], factors: list[Value], channel: Value, count: int
) -> None:
    f, panel = head.f, head.panel
    vectors = len(targets)
    sums = [[f.var(f.const(_INTS, 0)) for _ in range(vectors)] for _ in range(count)]
    rows = [f.offset(head.parts["v"], (channel + n) * head.tokens) for n in range(count)]
    for group in f.loop(0, (head.place.length + 3) // 4):
        line = f.offset(head.parts["weights"], group * (64 * vectors))
        weights = [f.load(_INTS, f.offset(line, 64 * n), 64) for n in range(vectors)]
        for row, totals in zip(rows, sums, strict=True):
            four = f.splat(f.load("i32", f.offset(row, group * 4)), _LANES)
            for total, weight in zip(totals, weights, strict=True):
                total.set(panel.dot(f, total.get(), weight, four))
    step = head.place.frame.panel.row_bytes
    shift = f.splat(head.place.frame.number("v_offset"), _LANES)
    for n, totals in enumerate(sums):
        for target, total, factor in zip(targets, totals, factors, strict=True):
            value = f.fma(f.convert("sitofp", total.get(), _FLOATS), factor, shift)
            f.store(value, f.offset(target, (channel + n) * step), 64)
