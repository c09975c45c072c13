"""Attention of one head of one sequence at a time: softmax(scale q k^T) v with the true length.

Queries are lanes. For a chunk of queries (16 or 32) everything stays near the core:

    scores[key][query]   = sum over c of k[c][key] (broadcast) * q[c][query]     8 keys at a time
    weights[key][query]  = exp(scale * (score - max)), sum per query             in place
    context[c][query]    = sum over keys of v[c][key] (broadcast) * weights      8 channels

Only real keys are visited, so padding costs nothing and needs no mask. A kernel `by_distance` adds
to each score what `distances` holds, and visits only the keys that a window shows; one with
`positions` also adds the products of `relative`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels import distances, relative
from sparsefx.backends.cpu.kernels.distances import Distances
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.kernels.products import Tile
from sparsefx.backends.cpu.kernels.relative import PANEL, STRIP, Kinds, Relative, Strip
from sparsefx.backends.cpu.panel import Panel
from sparsefx.backends.cpu.vmath import exp, maximum

__all__ = ["CHUNK", "FIELDS", "emit", "open_attention", "scratch_bytes"]

CHUNK = PANEL
"""Sequences start at multiples of this many tokens."""

_CHANNELS = 8
_SCORE_BYTES = CHUNK * 2 * 4
"""Bytes of the scores of a key, at most."""

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
    return (longest + CHUNK) * _SCORE_BYTES


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
    def floats(self) -> str:
        return vector(self.lanes, "float")

    @property
    def tile(self) -> Tile:
        return Tile(self.frame.f, self.lanes, self.frame.word("head_size"))

    @property
    def first(self) -> Value:
        return self.place.first

    @property
    def length(self) -> Value:
        return self.place.length


@dataclass(frozen=True)
class _Keys:
    """Keys that a chunk of queries visits, counted from the sequence; `start` is None for 0."""

    start: Value | None
    stop: Value


def emit(
    isa: Isa, width: int, *, by_distance: bool = False, positions: Kinds | None = None
) -> Function:
    """The kernel for one instruction set and panel width; with `positions` it is by distance."""
    name, fields = "attention", FIELDS
    if positions is not None:
        name, fields = f"attention_{positions.symbol}", (*FIELDS, *relative.FIELDS)
    frame = open_attention(name, isa, width, fields, by_distance=by_distance)
    for place in Place.each(frame):
        head = _Head(place, isa.lanes, Distances.of(place) if by_distance else None)
        if positions is not None:
            scratch = frame.f.offset(frame.job("scratch"), (place.length + CHUNK) * _SCORE_BYTES)
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
    keys = _Keys(None, head.length)
    if head.distances is not None:
        keys = _Keys(*head.distances.visible(number, CHUNK * chunks, head.tile.rows))
    _scores(head, keys, queries)
    if head.distances is not None:
        _add_distances(head, keys, number, queries, strip)
    sums = _softmax(head, keys, len(queries))
    _context(head, keys, targets, sums)


def _scores(head: _Head, keys: _Keys, queries: list[Value]) -> None:
    """scores[key][query] for the keys, rounded up to the rows of a tile."""
    frame, f, tile = head.frame, head.frame.f, head.tile
    row_bytes = frame.panel.row_bytes
    for key in f.loop(keys.start or 0, keys.stop, tile.rows):
        line = head.place.at("k", head.first + key)
        for n, totals in enumerate(tile.sums(line, row_bytes, queries, row_bytes)):
            for m, total in enumerate(totals):
                f.store(total.get(), _score_place(head, key + n, len(queries), m))


def _score_place(head: _Head, key: Value, vectors: int, number: int) -> Value:
    step = head.lanes * 4
    return head.frame.f.offset(head.frame.job("scratch"), key * (vectors * step) + number * step)


def _add_distances(
    head: _Head, keys: _Keys, query: Value, queries: list[Value], strip: Strip | None
) -> None:
    """Scale the scores, products with positions among them; add what distances and hiding do."""
    frame, f, distances = head.frame, head.frame.f, head.distances
    assert distances is not None
    start = keys.start or f.i64(0)
    chunk = strip.chunk(query, queries, start, keys.stop) if strip is not None else None
    scale = f.splat(frame.number("scale"), head.lanes)
    for key in f.loop(start, keys.stop):
        hidden = distances.of_key(key, head.lanes)
        for n in range(len(queries)):
            place = _score_place(head, key, len(queries), n)
            bias = distances.bias(query + n * head.lanes, key, head.lanes)
            score = f.load(head.floats, place, head.lanes * 4)
            if chunk is not None:
                score = chunk.added(score, key, n)
            f.store(f.fma(score, scale, bias) + hidden, place, head.lanes * 4)


def _softmax(head: _Head, keys: _Keys, vectors: int) -> list[Value]:
    """Turn scores into exp(scale * (score - max)); gives their sums per query."""
    frame, f = head.frame, head.frame.f
    lowest = f.const(head.floats, -3e38)
    tops = [f.var(lowest) for _ in range(vectors)]
    for key in f.loop(keys.start or 0, keys.stop):
        for n, top in enumerate(tops):
            score = f.load(head.floats, _score_place(head, key, vectors, n))
            top.set(maximum(f, score, top.get()))
    scale = None if head.distances else f.splat(frame.number("scale"), head.lanes)
    zero = f.const(head.floats, 0)
    sums = [f.var(zero) for _ in range(vectors)]
    for key in f.loop(keys.start or 0, keys.stop):
        for n in range(vectors):
            place = _score_place(head, key, vectors, n)
            below = f.load(head.floats, place) - tops[n].get()
            weight = exp(f, below if scale is None else below * scale)
            f.store(weight, place)
            sums[n].set(sums[n].get() + weight)
    return [s.get() for s in sums]


def _context(head: _Head, keys: _Keys, targets: list[Value], sums: list[Value]) -> None:
    """context[channel][query], divided by the sum of the weights."""
    f = head.frame.f
    one = f.const(head.floats, 1.0)
    factors = [one / s for s in sums]
    size = head.frame.word("head_size")
    together = _CHANNELS if head.lanes == 16 else _CHANNELS // 2
    whole = size // together * together
    for channel in f.loop(0, whole, together):
        _channels(head, keys, targets, factors, channel, together)
    for channel in f.loop(whole, size):
        _channels(head, keys, targets, factors, channel, 1)


def _channels(
    head: _Head,
    keys: _Keys,
    targets: list[Value],
    factors: list[Value],
    channel: Value,
    count: int,
) -> None:
    f, row_bytes = head.frame.f, head.frame.panel.row_bytes
    zero = f.const(head.floats, 0)
    totals = [[f.var(zero) for _ in targets] for _ in range(count)]
    for key, place in _each_key(head, keys, channel):
        weights = [
            f.load(head.floats, _score_place(head, key, len(targets), n))
            for n in range(len(targets))
        ]
        for n in range(count):
            value = f.splat(f.load("float", f.offset(place, n * row_bytes)), head.lanes)
            for total, weight in zip(totals[n], weights, strict=True):
                total.set(f.fma(weight, value, total.get()))
    for n in range(count):
        row = (channel + n) * row_bytes
        for target, total, factor in zip(targets, totals[n], factors, strict=True):
            f.store(total.get() * factor, f.offset(target, row), head.lanes * 4)


def _each_key(head: _Head, keys: _Keys, channel: Value) -> Iterator[tuple[Value, Value]]:
    """Loop over the keys, panel by panel: (number of the key, where v[channel][key] lies)."""
    frame, f, width = head.frame, head.frame.f, head.frame.panel.width
    begin = head.first if keys.start is None else head.first + keys.start
    end = head.first + keys.stop
    for number in f.loop(begin // width, (end + (width - 1)) // width):
        left, right = number * width, (number + 1) * width
        start = f.select(f.compare(left, ">", begin), left, begin)
        stop = f.select(f.compare(right, "<", end), right, end)
        rows = number * frame.word("v_rows") + channel
        base = f.offset(head.place.starts["v"], rows * frame.panel.row_bytes)
        for token in f.loop(start, stop):
            yield token - head.first, f.offset(base, (token - left) * 4)
