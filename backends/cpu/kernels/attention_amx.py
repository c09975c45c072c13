"""The attention of `attention_i8` with scores on AMX tiles: the same integers, so the same bits.

    q        [channels / 4] [tokens] [4]       scores of 16 keys = keys x q, 64 channels a product
    keys     [keys] [channels]

Channels are filled to whole tiles: what is beyond them is zero on one side of a product.
"""

from __future__ import annotations

from functools import partial

from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.shuffles import transpose
from sparsefx.backends.cpu.kernels.amx_tiles import TileRegisters, full_tiles, tiles_of
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
_DEPTH = 64
"""Channels of a product."""
_LEFT, _RIGHT = 6, 7


def _filled(size: Value, whole: int) -> Value:
    return (size + (whole - 1)) // whole * whole


def _sizes(size: Value, padded: Value, tokens: Value) -> dict[str, Value]:
    """Bytes of the parts of the scratch memory."""
    depth = _filled(size, _DEPTH)
    return {
        "whole_q": depth * tokens,
        "whole_k": depth * tokens,
        "keys": depth * padded,
        "start": padded * 4,
        "scores": padded * SCORE_BYTES,
    }


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // _DEPTH) * _DEPTH + 128  # whole panels of up to 64
    depth = -(-head_size // _DEPTH) * _DEPTH
    return (3 * depth + 4 + SCORE_BYTES) * tokens + 1024


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


def _chunk(head: Head, tiles: TileRegisters, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    _products(head, tiles, query, vectors)
    _scores(head, query, vectors)
    attend(head, query, vectors)


def _products(head: Head, tiles: TileRegisters, query: Value, vectors: int) -> None:
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
            tiles.store(n, head.scores.at(key, vectors, n), stride)


def _scores(head: Head, query: Value, vectors: int) -> None:
    """Turn the products of real keys into scaled fp32 scores, in place."""
    f = head.f
    factor = f.splat(head.place.frame.number("scale"), _LANES)
    for key in f.loop(0, head.place.length):
        start = f.splat(f.load("i32", f.offset(head.parts["start"], key * 4)), _LANES)
        for n in range(vectors):
            place = head.scores.at(key, vectors, n)
            total = f.load(_INTS, place, 64) + start
            f.store(scaled(head, total, factor, (query, n * CHUNK), (key, 0)), place, 64)
