"""Attention in int8 products, for models whose linears are int8 already.

Per head of a sequence, q, k, v are quantized on the fly: q and k per token, v per channel, all
symmetric (q is shifted to uint8 by 128, which `start` takes back). Softmax weights, which lie in
0..1 with their maximum at 1, become uint8 in steps of 1/255, and their sum is taken after rounding,
so that they still add up to 1. Four channels, or four keys, go into one `vpdpbusd`:

    q, k     [channels / 4] [tokens] [4]      score[key][query] += q vector . broadcast of 4 k
    weights  [keys / 4] [queries] [4]         context[c][query] += weights vector . broadcast of 4 v
    v        [channels] [keys]

Expected (an estimate, no accuracy was measured on a trained model): the error of a score is about
1 % of its spread. `cpu{attention='fp32'}` keeps fp32 products (kernel `attention`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.attention import CHUNK, FIELDS, Place
from sparsefx.backends.cpu.panel import Panel
from sparsefx.backends.cpu.vmath import maximum, polynomial

__all__ = ["emit", "scratch_bytes", "symbol"]

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_BLOCK = 8
_LEVELS = 255.0
_PARTS = ("q", "k", "v", "q_scale", "k_scale", "start", "v_scale", "scores", "weights")


def symbol(isa: Isa, width: int) -> str:
    """Name of the kernel."""
    return f"attention_i8_{isa.name}_w{width}"


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a thread for sequences of up to `longest` tokens."""
    tokens = -(-longest // CHUNK) * CHUNK
    return 3 * head_size * tokens + 12 * tokens + 4 * head_size + 160 * tokens + 64 * len(_PARTS)


@dataclass(frozen=True)
class _Head:
    """One head of one sequence: where it lies, and the parts of the scratch memory."""

    place: Place
    panel: Panel
    size: Value
    padded: Value  # length rounded up to whole chunks
    parts: dict[str, Value]

    @property
    def f(self) -> Function:
        return self.place.frame.f


def emit(isa: Isa, width: int) -> Function:
    """The kernel for one instruction set with `vpdpbusd` and 512-bit vectors."""
    frame = open_frame(symbol(isa, width), Panel(isa, width), FIELDS)
    f = frame.f
    size = frame.word("head_size")
    for place in Place.each(frame):
        padded = (place.length + (CHUNK - 1)) // CHUNK * CHUNK
        parts = _scratch(frame, size, padded)
        head = _Head(place, Panel(isa, 64), size, padded, parts)
        for name in ("q", "k"):
            _quantize_tokens(head, name)
        _quantize_channels(head)
        _queries(head)
    return f


def _scratch(frame: Frame, size: Value, padded: Value) -> dict[str, Value]:
    """The parts of the scratch memory, each from a cache line on."""
    f = frame.f
    sizes = {
        "q": size * padded,
        "k": size * padded,
        "v": size * padded,
        "q_scale": padded * 4,
        "k_scale": padded * 4,
        "start": padded * 4,
        "v_scale": size * 4,
        "scores": padded * 128,
        "weights": padded * 32,
    }
    parts, here = {}, f.i64(0)
    for name in _PARTS:
        parts[name] = f.offset(frame.job("scratch"), here)
        here = here + (sizes[name] + 63) // 64 * 64
    return parts


def _absolute(f: Function, value: Value) -> Value:
    return f.intrinsic(f"llvm.fabs.v{_LANES}f32", value.type, value)


def _inverse(f: Function, largest: Value) -> tuple[Value, Value]:
    """(127 / largest, largest / 127); a largest of 0 is taken as tiny."""
    bounded = maximum(f, largest, f.const(largest.type, 1e-20))
    return f.const(largest.type, 127.0) / bounded, bounded * (1 / 127)


def _together(f: Function, four: list[Value]) -> Value:
    """Four int32 vectors of small values as the bytes of one vector."""
    total = four[0] & 255
    for n, value in enumerate(four[1:], 1):
        total = total | ((value & 255) << (8 * n))
    return total


def _quantize_tokens(head: _Head, name: str) -> None:
    """Q or k of this head as int8 with one scale per token, four channels together."""
    f, place = head.f, head.place
    step = place.frame.panel.row_bytes
    for token in f.loop(0, head.padded, CHUNK):
        base = place.at(name, place.first + token)
        top = f.var(f.const(_FLOATS, 0))
        for channel in f.loop(0, head.size):
            value = f.load(_FLOATS, f.offset(base, channel * step), 64)
            top.set(maximum(f, _absolute(f, value), top.get()))
        inverse, scale = _inverse(f, top.get())
        f.store(scale, f.offset(head.parts[f"{name}_scale"], token * 4), 64)
        total = f.var(f.const(_INTS, 0))
        for group in f.loop(0, head.size // 4):
            four = []
            for n in range(4):
                row = f.offset(base, (group * 4 + n) * step)
                scaled = f.load(_FLOATS, row, 64) * inverse
                four.append(head.panel.round_to_int(f, scaled))
                total.set(total.get() + four[-1])
            if name == "q":
                four = [value + 128 for value in four]
            target = f.offset(head.parts[name], group * head.padded * 4 + token * 4)
            f.store(_together(f, four), target, 64)
        if name == "k":
            start = f.const(_INTS, 0) - (total.get() << 7)
            f.store(start, f.offset(head.parts["start"], token * 4), 64)


def _quantize_channels(head: _Head) -> None:
    """V of this head as int8 [channels][keys] with one scale per channel; 0 beyond the end."""
    f, place = head.f, head.place
    step = place.frame.panel.row_bytes
    number = f.constant_vector("i32", range(_LANES))
    for channel in f.loop(0, head.size):
        top = f.var(f.const(_FLOATS, 0))
        for token in f.loop(0, head.padded, CHUNK):
            value = _real(head, channel * step, token, number)
            top.set(maximum(f, _absolute(f, value), top.get()))
        largest = f.intrinsic(f"llvm.vector.reduce.fmax.v{_LANES}f32", "float", top.get())
        inverse, scale = _inverse(f, largest)
        f.store(scale, f.offset(head.parts["v_scale"], channel * 4))
        factor = f.splat(inverse, _LANES)
        for token in f.loop(0, head.padded, CHUNK):
            value = _real(head, channel * step, token, number)
            whole = head.panel.round_to_int(f, value * factor)
            small = f.convert("trunc", whole, vector(_LANES, "i8"))
            f.store(small, f.offset(head.parts["v"], channel * head.padded + token), CHUNK)


def _real(head: _Head, row: Value, token: Value, number: Value) -> Value:
    """16 values of v from `token` on, 0 beyond the sequence."""
    f, place = head.f, head.place
    value = f.load(_FLOATS, f.offset(place.at("v", place.first + token), row), 64)
    left = f.splat(f.convert("trunc", place.length - token, "i32"), _LANES)
    return f.select(f.compare(number, "<", left), value, f.const(_FLOATS, 0))


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
    scales = [
        f.load(_FLOATS, f.offset(head.parts["q_scale"], (query + n * CHUNK) * 4), 64) * factor
        for n in range(vectors)
    ]
    line = head.padded * 4
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
        k_scales = f.offset(head.parts["k_scale"], key * 4)
        for n, row in enumerate(sums):
            k_scale = f.splat(f.index("float", k_scales, n), _LANES)
            for m, total in enumerate(row):
                score = f.convert("sitofp", total.get(), _FLOATS) * (scales[m] * k_scale)
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
    head: _Head, targets: list[Value], factors: list[Value], channel: Value, count: int
) -> None:
    f, panel = head.f, head.panel
    vectors = len(targets)
    sums = [[f.var(f.const(_INTS, 0)) for _ in range(vectors)] for _ in range(count)]
    rows = [f.offset(head.parts["v"], (channel + n) * head.padded) for n in range(count)]
    for group in f.loop(0, (head.place.length + 3) // 4):
        line = f.offset(head.parts["weights"], group * (64 * vectors))
        weights = [f.load(_INTS, f.offset(line, 64 * n), 64) for n in range(vectors)]
        for row, totals in zip(rows, sums, strict=True):
            four = f.splat(f.load("i32", f.offset(row, group * 4)), _LANES)
            for total, weight in zip(totals, weights, strict=True):
                total.set(panel.dot(f, total.get(), weight, four))
    step = head.place.frame.panel.row_bytes
    for n, totals in enumerate(sums):
        scale = f.splat(f.load("float", f.offset(head.parts["v_scale"], (channel + n) * 4)), _LANES)
        for target, total, factor in zip(targets, totals, factors, strict=True):
            value = f.convert("sitofp", total.get(), _FLOATS) * (scale * factor)
            f.store(value, f.offset(target, (channel + n) * step), 64)
