"""What the attention kernels on codes share: a head, its codes of q and k, and sums of them.

Query and key are uint8 codes. With q = sq (a - za), k = sk (b - zb) and k' = b - 128 as int8

    score = sq sk (sum of a k' - za sum of k') + what is the same for all keys of a query,

and softmax does not see the last part. `attention_i8` and `attention_amx` take these sums in two
ways; what comes after them is `context`, so their results are the same bits.

A sequence may start and end inside a panel: for q and k the scratch memory holds whole panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels.attention import CHUNK
from sparsefx.backends.cpu.kernels.attention import FIELDS as FLOAT_FIELDS
from sparsefx.backends.cpu.kernels.context import Keys, Scores, context, softmax
from sparsefx.backends.cpu.kernels.distances import Distances
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = [
    "FIELDS",
    "Head",
    "attend",
    "each_chunk",
    "interleave",
    "open_head",
    "scaled",
    "start_sums",
]

FIELDS = (*FLOAT_FIELDS, "q_zero")
"""`scale` is that of the codes' products."""

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_SIGNS = -0x7F7F7F80  # 0x80808080: flips uint8 to int8 in four bytes at once
_ONES = 0x01010101

Sizes = Callable[[Value, Value, Value], dict[str, Value]]


@dataclass(frozen=True)
class Head:
    """One head of one sequence: where it lies, and the parts of the scratch memory.

    Attributes:
        padded: Its length rounded up to whole chunks.
        panels: Panels that it touches.
        tokens: Tokens of these panels.
        parts: Pointers; those of q and k point at the sequence, `whole_*` at the first panel.
        distances: What distances add to scores, if they do.
    """

    place: Place
    panel: Panel
    size: Value
    padded: Value
    panels: Value
    tokens: Value
    parts: dict[str, Value]
    distances: Distances | None = None

    @property
    def f(self) -> Function:
        """The function under construction."""
        return self.place.frame.f

    @property
    def scores(self) -> Scores:
        """The scores of a chunk of queries."""
        return Scores(self.place, _LANES, self.parts["scores"])


def open_head(place: Place, isa: Isa, sizes: Sizes, *, by_distance: bool = False) -> Head:
    """Divide the scratch memory; every part starts at a cache line.

    Args:
        place: One head of one sequence.
        isa: Instruction set.
        sizes: Bytes of the parts, from the head's size, its padded length and the tokens of all
            panels that it touches; `whole_q`, `whole_k`, `start` and `scores` must be there.
        by_distance: Whether distances add to scores.
    """
    frame, f = place.frame, place.frame.f
    width = frame.panel.width
    size = frame.word("head_size")
    padded = (place.length + (CHUNK - 1)) // CHUNK * CHUNK
    number = place.first // width
    shift = place.first - number * width
    panels = (shift + padded + (width - 1)) // width
    tokens = panels * width
    parts, here = {}, f.i64(0)
    for name, amount in sizes(size, padded, tokens).items():
        parts[name] = f.offset(frame.job("scratch"), here)
        here = here + (amount + 63) // 64 * 64
    for name in ("q", "k"):
        parts[name] = f.offset(parts[f"whole_{name}"], shift * 4)
    near = Distances.of(place) if by_distance else None
    return Head(place, Panel(isa, 64), size, padded, panels, tokens, parts, near)


def _row(head: Head, name: str, number: Value, channel: Value) -> Value:
    """The bytes of one channel of q or k in panel `number` of the sequence."""
    f, place = head.f, head.place
    width = place.frame.panel.width
    first = place.first // width
    start = f.offset(place.starts[name], (first + number) * place.rows[name] * width)
    return f.load(vector(width, "i8"), f.offset(start, channel * width), width)


def interleave(head: Head, name: str) -> None:
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


def start_sums(head: Head) -> None:
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


def each_chunk(head: Head, chunk: Callable[[Value, int], None]) -> None:
    """Go through the queries 32 at a time, then 16: number of the first, vectors."""
    f = head.f
    chunks = head.padded // CHUNK
    pairs = chunks // 2
    for pair in f.loop(0, pairs):
        chunk(pair * (2 * CHUNK), 2)
    for number in f.loop(pairs * 2, chunks):
        chunk(number * CHUNK, 1)


def scaled(
    head: Head, total: Value, factor: Value, query: tuple[Value, int], key: tuple[Value, int]
) -> Value:
    """The score of an integer sum for 16 queries, with what distances and hidden keys add.

    Args:
        head: The head.
        total: int32 sums.
        factor: What a product of two codes is worth.
        query: Number of the first query, in two summands: a kernel without distances adds none.
        key: Number of the key, likewise.
    """
    f = head.f
    value = f.convert("sitofp", total, _FLOATS)
    if head.distances is None:
        return value * factor
    number = key[0] + key[1]
    bias = head.distances.bias(query[0] + query[1], number, _LANES)
    return f.fma(value, factor, bias) + head.distances.of_key(number, _LANES)


def attend(head: Head, query: Value, vectors: int) -> None:
    """Write the context of 16 or 32 queries from number `query` on, whose scores are there."""
    place = head.place
    keys = Keys(None, place.length)
    targets = [place.at("output", place.first + query + n * CHUNK) for n in range(vectors)]
    context(head.scores, keys, targets, softmax(head.scores, keys, vectors))
