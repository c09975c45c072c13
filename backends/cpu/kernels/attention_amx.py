"""The attention of `attention_i8` on AMX tiles: the same integers, therefore the same bits.

Tiles multiply bytes, so weights p (12 bits) and values v (16 bits) are cut into bytes, p = 256 ph +
pl and v = 256 vh + vl with vh signed and the others not:

    sum of p v  =  65536 sum of vh ph  +  256 (sum of vh pl + sum of vl ph)  +  sum of vl pl

    q        [channels / 4] [tokens] [4]       scores of 16 keys = keys x q, 64 channels a product
    keys     [keys] [channels]
    ph, pl   [keys / 4] [queries] [4]          three sums of 16 channels = v x p, 64 keys a product
    vh, vl   [channels] [keys]

Channels and keys are filled to whole tiles: what is beyond them is zero on one side of a product.
"""

from __future__ import annotations

from functools import partial

from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.amx_tiles import (
    TILE_BYTES,
    TileRegisters,
    full_tiles,
    tiles_of,
)
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
from sparsefx.backends.cpu.kernels.embed import transpose
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.vmath import maximum

__all__ = ["FIELDS", "emit", "scratch_bytes"]

_LANES = 16
_FLOATS, _INTS, _BYTES = vector(_LANES, "float"), vector(_LANES, "i32"), vector(_LANES, "i8")
_DEPTH = 64
"""Channels, or keys, of a product."""
_HIGH, _CROSS, _LOW = range(3)
"""Sums of a vector of queries; those of a second one come after them."""
_LEFT, _RIGHT = 6, 7


def _filled(size: Value, whole: int) -> Value:
    return (size + (whole - 1)) // whole * whole


def _sizes(size: Value, padded: Value, tokens: Value) -> dict[str, Value]:
    """Bytes of the parts of the scratch memory."""
    depth, keys = _filled(size, _DEPTH), _filled(padded, _DEPTH)
    return {
        "whole_q": depth * tokens,
        "whole_k": depth * tokens,
        "keys": depth * padded,
        "vh": _filled(size, _LANES) * keys,
        "vl": _filled(size, _LANES) * keys,
        "v_scale": size * 4,
        "start": padded * 4,
        "scores": padded * 128,
        "ph": keys * 32,
        "pl": keys * 32,
        "sums": size.owner.i64(6 * TILE_BYTES),
    }


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // _DEPTH) * _DEPTH + 128  # whole panels of up to 64
    depth = -(-head_size // _DEPTH) * _DEPTH
    return (5 * depth + 200) * tokens + 4 * head_size + 6 * TILE_BYTES + 1024


def emit(isa: Isa, width: int, *, by_distance: bool = False) -> Function:
    """The kernel for one instruction set with tiles."""
    frame = open_attention("attention_amx", isa, width, FIELDS, by_distance=by_distance)
    f, tiles = frame.f, tiles_of(frame.f, isa)
    tiles.configure(f.constant_bytes("amx.config", full_tiles()))
    for place in Place.each(frame, items={"q": 1, "k": 1}):
        head = open_head(place, isa, _sizes, by_distance=by_distance)
        interleave(head, "q")
        interleave(head, "k")
        start_sums(head)
        _keys(head)
        values(head, partial(_keep, head))
        _clear_values(head)
        each_chunk(head, partial(_chunk, head, tiles))
    tiles.release()
    return f


def _keys(head: Head) -> None:
    """Codes of k as rows of channels; zero beyond the last channel."""
    f, depth = head.f, _filled(head.size, _DEPTH)
    zero = f.const(_INTS, 0)
    for group in f.loop(head.size // 4, depth // 4):
        for token in f.loop(0, head.padded, CHUNK):
            f.store(zero, f.offset(head.parts["k"], (group * head.tokens + token) * 4), 64)
    for token in f.loop(0, head.padded, CHUNK):
        for first in f.loop(0, depth // 4, _LANES):
            places = [((first + n) * head.tokens + token) * 4 for n in range(_LANES)]
            block = [f.load(_INTS, f.offset(head.parts["k"], place), 64) for place in places]
            for n, row in enumerate(transpose(f, block)):
                f.store(row, f.offset(head.parts["keys"], (token + n) * depth + first * 4), 64)


def _keep(head: Head, channel: Value, token: Value, whole: Value) -> None:
    """Store 16 values of a channel, cut into bytes."""
    f = head.f
    place = channel * _filled(head.padded, _DEPTH) + token
    high = f.operate("ashr", whole, f.const(_INTS, 8))
    for name, part in (("vh", high), ("vl", whole)):
        f.store(f.convert("trunc", part, _BYTES), f.offset(head.parts[name], place), CHUNK)


def _clear_values(head: Head) -> None:
    """Values of the keys that fill the last product."""
    f, keys = head.f, _filled(head.padded, _DEPTH)
    for channel in f.loop(0, head.size):
        for token in f.loop(head.padded, keys, CHUNK):
            for name in ("vh", "vl"):
                place = f.offset(head.parts[name], channel * keys + token)
                f.store(f.const(_BYTES, 0), place, CHUNK)


def _chunk(head: Head, tiles: TileRegisters, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    _scores(head, tiles, query, vectors)
    _context(head, tiles, query, _softmax(head, query, vectors))


def _scores(head: Head, tiles: TileRegisters, query: Value, vectors: int) -> None:
    """Products of all keys with the queries, int32 [keys][queries]."""
    f, depth = head.f, _filled(head.size, _DEPTH)
    line, stride = head.tokens * 4, f.i64(64 * vectors)
    for key in f.loop(0, head.padded, _LANES):
        for n in range(vectors):
            tiles.zero(n)
        for channel in f.loop(0, depth, _DEPTH):
            tiles.load(_LEFT, f.offset(head.parts["keys"], key * depth + channel), depth)
            queries = f.offset(head.parts["q"], channel // 4 * line + query * 4)
            for n in range(vectors):
                tiles.load(_RIGHT, f.offset(queries, 64 * n), line)
                tiles.dot(n, _LEFT, _RIGHT)
        for n in range(vectors):
            tiles.store(n, _score(head, key, vectors, n), stride)


def _score(head: Head, key: Value, vectors: int, number: int) -> Value:
    return head.f.offset(head.parts["scores"], key * (64 * vectors) + 64 * number)


def _softmax(head: Head, query: Value, vectors: int) -> list[Value]:
    """Products to weights, four keys together, cut into bytes; gives the sums of the weights."""
    f, length = head.f, head.place.length
    tops = _real_scores(head, query, vectors)
    filling = f.const(_FLOATS, -1e30)
    for key in f.loop(length, _filled(length, 4)):
        for n in range(vectors):
            f.store(filling, _score(head, key, vectors, n), 64)
    sums = [f.var(f.const(_INTS, 0)) for _ in range(vectors)]
    for group in f.loop(0, _filled(length, 4) // 4):
        for n in range(vectors):
            high = low = f.const(_INTS, 0)
            for m in range(4):
                score = f.load(_FLOATS, _score(head, group * 4 + m, vectors, n), 64)
                levels = exp_levels(head, score - tops[n])
                sums[n].set(sums[n].get() + levels)
                high = high | ((levels >> 8) << (8 * m))
                low = low | ((levels & 255) << (8 * m))
            for name, part in (("ph", high), ("pl", low)):
                f.store(part, f.offset(head.parts[name], group * (64 * vectors) + 64 * n), 64)
    for group in f.loop(_filled(length, 4) // 4, _filled(head.padded, _DEPTH) // 4):
        for n in range(vectors):
            for name in ("ph", "pl"):
                place = f.offset(head.parts[name], group * (64 * vectors) + 64 * n)
                f.store(f.const(_INTS, 0), place, 64)
    return [f.convert("sitofp", s.get(), _FLOATS) for s in sums]


def _real_scores(head: Head, query: Value, vectors: int) -> list[Value]:
    """Turn the products of real keys into scaled fp32 scores, in place; gives the largest."""
    f = head.f
    factor = f.splat(head.place.frame.number("scale"), _LANES)
    tops = [f.var(f.const(_FLOATS, -3e38)) for _ in range(vectors)]
    for key in f.loop(0, head.place.length):
        start = f.splat(f.load("i32", f.offset(head.parts["start"], key * 4)), _LANES)
        for n, top in enumerate(tops):
            place = _score(head, key, vectors, n)
            total = f.load(_INTS, place, 64) + start
            score = scaled(head, total, factor, (query, n * CHUNK), (key, 0))
            f.store(score, place, 64)
            top.set(maximum(f, score, top.get()))
    return [top.get() for top in tops]


def _context(head: Head, tiles: TileRegisters, query: Value, sums: list[Value]) -> None:
    """context[channel][query] = values . weights, back to fp32."""
    f, place = head.f, head.place
    one = f.const(_FLOATS, 1.0)
    factors = [one / total for total in sums]
    targets = [place.at("output", place.first + query + n * CHUNK) for n in range(len(sums))]
    for channel in f.loop(0, head.size, _LANES):
        _products(head, tiles, channel, len(sums))
        end = channel + _LANES
        last = f.select(f.compare(end, "<", head.size), end, head.size)
        for row in f.loop(channel, last):
            _finish(head, row, row - channel, targets, factors)


def _products(head: Head, tiles: TileRegisters, channel: Value, vectors: int) -> None:
    """The three sums of 16 channels for each vector of queries."""
    f, keys = head.f, _filled(head.padded, _DEPTH)
    stride = f.i64(64 * vectors)
    for n in range(3 * vectors):
        tiles.zero(n)
    for key in f.loop(0, keys, _DEPTH):
        for name, signed in (("vh", True), ("vl", False)):
            tiles.load(_LEFT, f.offset(head.parts[name], channel * keys + key), keys)
            for n in range(vectors):
                for part, total in (("ph", _HIGH), ("pl", _CROSS)):
                    weights = f.offset(head.parts[part], key * (16 * vectors) + 64 * n)
                    tiles.load(_RIGHT, weights, stride)
                    tiles.dot(3 * n + total + (not signed), _LEFT, _RIGHT, signed=signed)
    for n in range(3 * vectors):
        tiles.store(n, f.offset(head.parts["sums"], n * TILE_BYTES), f.i64(64))


def _finish(
    head: Head, channel: Value, row: Value, targets: list[Value], factors: list[Value]
) -> None:
    """Join the three sums of a channel and write its fp32 values."""
    f = head.f
    scale = f.splat(f.load("float", f.offset(head.parts["v_scale"], channel * 4)), _LANES)
    step = head.place.frame.panel.row_bytes
    for n, (target, factor) in enumerate(zip(targets, factors, strict=True)):
        place = f.offset(head.parts["sums"], row * 64 + 3 * n * TILE_BYTES)
        high, cross, low = (
            f.load(_INTS, f.offset(place, part * TILE_BYTES), 64) for part in (_HIGH, _CROSS, _LOW)
        )
        total = (high << 16) + (cross << 8) + low
        value = f.convert("sitofp", total, _FLOATS) * (scale * factor)
        f.store(value, f.offset(target, channel * step), 64)
