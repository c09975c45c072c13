"""Attention of one head of one sequence at a time: softmax(scale q k^T) v with the true length.

Queries are lanes. For a chunk of queries (16 or 32) everything stays near the core:

    scores[key][query]   = sum over c of k[c][key] (broadcast) * q[c][query]     8 keys at a time

and what `context` makes of them. Only real keys are visited, so padding costs nothing and needs no
mask. A kernel `by_distance` adds to each score what `distances` holds, and visits only the keys
that a window shows; one with `positions` also adds the products of `relative`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import distances, relative
from sparsefx.backends.cpu.kernels.context import SCORE_BYTES, Keys, Scores, context, softmax
from sparsefx.backends.cpu.kernels.distances import Distances
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.kernels.products import Tile
from sparsefx.backends.cpu.kernels.relative import PANEL, STRIP, Kinds, Relative, Strip
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["CHUNK", "FIELDS", "emit", "open_attention", "scratch_bytes"]

CHUNK = PANEL
"""Sequences start at multiples of this many tokens."""

FIELDS = (
    *(f"{part}{what}" for part in "qkv" for what in ("", "_rows", "_first")),
    "output",
    "output_rows",
    "heads",
    "head_size",
    "scale",
)
"""For q, k, v: the buffer, its rows, and the row where the first head starts."""


def open_attention(
    name: str, isa: Isa, width: int, fields: tuple[str, ...], *, by_distance: bool
) -> Frame:
    """Start the kernel `name` with these words, and those of distances where it adds them."""
    if by_distance:
        name, fields = f"{name}_by_distance", (*fields, *distances.FIELDS)
    return open_frame(f"{name}_{isa.name}_w{width}", Panel(isa, width), fields)


def scratch_bytes(longest: int) -> int:
    """Scratch memory that a thread needs for sequences of up to `longest` tokens."""
    return (longest + CHUNK) * SCORE_BYTES


@dataclass(frozen=True)
class _Head:
    """A place with the vectors of an instruction set, and what distances and positions add."""

    place: Place
    lanes: int
    distances: Distances | None = None
    relative: Relative | None = None

    @property
    def frame(self) -> Frame:
        return self.place.frame

    @property
    def scores(self) -> Scores:
        return Scores(self.place, self.lanes, self.frame.job("scratch"))

    @property
    def tile(self) -> Tile:
        return Tile(self.frame.f, self.lanes, self.frame.word("head_size"))

    @property
    def first(self) -> Value:
        return self.place.first

    @property
    def length(self) -> Value:
        return self.place.length


def emit(
    isa: Isa, width: int, *, by_distance: bool = False, positions: Kinds | None = None
) -> Function:
    """The kernel for one instruction set and panel width; with `positions` it is by distance."""
    name, fields = "attention", FIELDS
    if positions is not None:
        by_distance = True
        name, fields = f"attention_{positions.symbol}", (*FIELDS, *relative.FIELDS)
    frame = open_attention(name, isa, width, fields, by_distance=by_distance)
    for place in Place.each(frame):
        head = _Head(place, isa.lanes, Distances.of(place) if by_distance else None)
        if positions is not None:
            scratch = frame.f.offset(frame.job("scratch"), (place.length + CHUNK) * SCORE_BYTES)
            head = replace(head, relative=Relative(place, head.tile, positions, scratch))
        _queries(head)
    return frame.f


def _queries(head: _Head) -> None:
    """All queries of the head; in strips where keys have products with positions."""
    f = head.frame.f
    chunks = (head.length + (CHUNK - 1)) // CHUNK
    if head.relative is None:
        _chunks(head, f.i64(0), chunks, None)
        return
    most = STRIP // CHUNK
    for start in f.loop(0, chunks, most):
        stop = f.select(f.compare(start + most, "<", chunks), start + most, chunks)
        strip = head.relative.strip(start * CHUNK, stop * CHUNK)
        _chunks(head, start, stop, strip)


def _chunks(head: _Head, start: Value, stop: Value, strip: Strip | None) -> None:
    """Queries in chunks: two at a time where registers allow."""
    f = head.frame.f
    if head.lanes == 16:
        paired = start + (stop - start) // 2 * 2
        for chunk in f.loop(start, paired, 2):
            _chunk(head, chunk * CHUNK, 2, strip)
        start = paired
    for chunk in f.loop(start, stop):
        _chunk(head, chunk * CHUNK, 1, strip)


def _chunk(head: _Head, number: Value, chunks: int, strip: Strip | None) -> None:
    """Attention of `chunks` times 16 queries from query `number` of the sequence."""
    f = head.frame.f
    tokens = [head.first + number + n * CHUNK for n in range(chunks)]
    per_chunk = CHUNK // head.lanes
    starts = [head.place.at("q", t) for t in tokens]
    outputs = [head.place.at("output", t) for t in tokens]
    split = [(n, lane * head.lanes * 4) for n in range(chunks) for lane in range(per_chunk)]
    queries = [f.offset(starts[n], extra) for n, extra in split]
    targets = [f.offset(outputs[n], extra) for n, extra in split]
    keys = Keys(None, head.length)
    if head.distances is not None:
        keys = Keys(*head.distances.visible(number, CHUNK * chunks, head.tile.rows))
    _scores(head, keys, queries)
    if head.distances is not None:
        _add_distances(head, keys, number, queries, strip)
    scale = None if head.distances else f.splat(head.frame.number("scale"), head.lanes)
    context(head.scores, keys, targets, softmax(head.scores, keys, len(queries), scale))


def _scores(head: _Head, keys: Keys, queries: list[Value]) -> None:
    """scores[key][query] for the keys, rounded up to the rows of a tile."""
    frame, f, tile = head.frame, head.frame.f, head.tile
    row_bytes = frame.panel.row_bytes
    for key in f.loop(keys.start or 0, keys.stop, tile.rows):
        line = head.place.at("k", head.first + key)
        for n, totals in enumerate(tile.sums(line, row_bytes, queries, row_bytes)):
            for m, total in enumerate(totals):
                f.store(total.get(), head.scores.at(key + n, len(queries), m))


def _add_distances(
    head: _Head, keys: Keys, query: Value, queries: list[Value], strip: Strip | None
) -> None:
    """Scale the scores, products with positions among them; add what distances and hiding do."""
    frame, f, distances = head.frame, head.frame.f, head.distances
    assert distances is not None
    scores, start = head.scores, keys.start or f.i64(0)
    chunk = strip.chunk(query, queries, start, keys.stop) if strip is not None else None
    scale = f.splat(frame.number("scale"), head.lanes)
    for key in f.loop(start, keys.stop):
        hidden = distances.of_key(key, head.lanes)
        for n in range(len(queries)):
            place = scores.at(key, len(queries), n)
            bias = distances.bias(query + n * head.lanes, key, head.lanes)
            score = f.load(scores.floats, place, head.lanes * 4)
            if chunk is not None:
                score = chunk.added(score, key, n)
            f.store(f.fma(score, scale, bias) + hidden, place, head.lanes * 4)
