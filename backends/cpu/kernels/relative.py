"""What attention adds to a score by products with embeddings of relative positions.

    score[key][query] = sum over c of  q[c][query] * k[c][key]
                                     + q[c][query] * a[c][query - key]     "of queries"
                                     + k[c][key]   * b[c][query - key]     "of keys"

as disentangled attention (DeBERTa) has them. a and b are constants of the model. They are stored by
distance, whatever buckets the model puts distances in, as panels of 16 distances:

    fp32 [heads][panels][head size][16]

All of the first panel are alike, and of the last: a distance beyond reads these. Queries are lanes:

* of keys: a row for each key, over distances; written from distance d to place key + d, it is a row
  over queries. A strip of 128 queries at a time bounds the memory.
* of queries: products[distance][query]. Lane i of the row that a key needs lies i rows further; two
  rounds of blends bring the lanes into one row, by i modulo 4, then by the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.ir import Value
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.kernels.products import Tile

__all__ = ["FIELDS", "PANEL", "STRIP", "Chunk", "Kinds", "Relative", "Strip", "scratch_bytes"]

FIELDS = ("of_queries", "of_keys", "position_step", "position_zero", "position_last")
"""a, b, bytes of either from one head to the next, the panel that begins with distance 0, the last
panel."""

PANEL = 16
"""Distances of a panel; queries start at multiples of it."""

STRIP = 128
"""Queries whose products of keys are held at a time."""

_AHEAD, _KEY_ROW = 32, STRIP + 80
"""Values before the first query of a row of keys, and all of them: panels begin and end outside."""
_QUERY_BYTES = 2 * PANEL * 4
"""Bytes of a row of queries, at most."""
_QUERY_ROWS = 64
"""Rows of queries beyond those of the longest sequence: two chunks, rounding, and what blends read
after the last row."""
_FIRST = 4
"""Rows that the first round of blends reads."""


@dataclass(frozen=True)
class Kinds:
    """Which products a kernel adds."""

    of_queries: bool
    of_keys: bool

    @property
    def symbol(self) -> str:
        """What tells the kernel from others."""
        return "_".join(kind for kind, added in vars(self).items() if added)


def scratch_bytes(longest: int) -> int:
    """Scratch memory that a thread needs for sequences of up to `longest` tokens."""
    return (longest + _QUERY_ROWS) * _QUERY_BYTES + (longest + 8) * _KEY_ROW * 4


@dataclass(frozen=True)
class Relative:
    """The products of one head of one sequence.

    Attributes:
        place: The head and the sequence.
        tile: Its register tile.
        kinds: What is added.
        scratch: Memory for the products.
    """

    place: Place
    tile: Tile
    kinds: Kinds
    scratch: Value

    def strip(self, start: Value, stop: Value) -> Strip:
        """Emit the products of all keys for the queries from `start` to `stop`.

        Both count from the sequence and are multiples of 16, at most 128 apart.
        """
        f, length = self.place.frame.f, self.place.length
        rows = f.offset(self.scratch, (length + _QUERY_ROWS) * _QUERY_BYTES)
        strip = Strip(self, start, rows)
        if self.kinds.of_keys:
            for key in f.loop(0, length, self.tile.rows):
                self._keys(strip, stop, key)
        return strip

    def _keys(self, strip: Strip, stop: Value, key: Value) -> None:
        """The rows of some keys, from the least distance of a query and one of them to the most."""
        f, lanes = self.place.frame.f, self.tile.lanes
        together = 2 if lanes == PANEL else 1
        line = self.place.at("k", self.place.first + key)
        whole = self._whole(self.place.length)  # counts panels from as far before distance 0
        first = (strip.start + whole - key - (self.tile.rows - 1)) // PANEL
        last = (stop - 1 + whole - key) // PANEL
        for number in f.loop(first, last + 1, together):
            near = number - whole // PANEL
            panels = [self._panel("of_keys", near + n) for n in range(together)]
            parts = [f.offset(p, n * 4) for p in panels for n in range(0, PANEL, lanes)]
            sums = self.tile.sums(line, self.place.frame.panel.row_bytes, parts, PANEL * 4)
            for n, totals in enumerate(sums):
                place = strip.of_key(key + n, near * PANEL + key + n)
                for m, total in enumerate(totals):
                    f.store(total.get(), f.offset(place, m * lanes * 4))

    def of_queries(self, queries: list[Value], number: Value, panels: Value) -> None:
        """Emit the products of some vectors of queries with some panels from `number` on.

        Row r of the scratch memory then holds in lane i what belongs to a distance i modulo 4
        further than its own.
        """
        f, lanes = self.place.frame.f, self.tile.lanes
        row_bytes = self.place.frame.panel.row_bytes
        for panel in f.loop(0, panels):
            start = self._panel("of_queries", number + panel)
            for part in range(0, PANEL, self.tile.rows):
                sums = self.tile.sums(f.offset(start, part * 4), PANEL * 4, queries, row_bytes)
                for n, totals in enumerate(sums):
                    for m, total in enumerate(totals):
                        place = self.query_row(panel * PANEL + (part + n), len(queries), m)
                        f.store(total.get(), place, lanes * 4)
        for row in f.loop(0, panels * PANEL):
            for m in range(len(queries)):
                mixed = self.blend(
                    [self.query_row(row + n, len(queries), m) for n in range(_FIRST)], 1
                )
                f.store(mixed, self.query_row(row, len(queries), m), lanes * 4)

    def query_row(self, row: Value, vectors: int, number: int) -> Value:
        """Where a vector of a row of products lies."""
        step = self.tile.lanes * 4
        return self.place.frame.f.offset(self.scratch, row * (vectors * step) + number * step)

    def blend(self, rows: list[Value], step: int) -> Value:
        """The vector that has in lane i the lane of row i / step, modulo their number."""
        f, lanes = self.place.frame.f, self.tile.lanes
        mixed, *others = [f.load(self.tile.floats, row, lanes * 4) for row in rows]
        for n, other in enumerate(others, 1):
            chosen = [i // step % len(rows) == n for i in range(lanes)]
            order = [lanes + i if own else i for i, own in enumerate(chosen)]
            mixed = f.shuffle(mixed, other, order)
        return mixed

    def _whole(self, tokens: Value) -> Value:
        return (tokens + (PANEL - 1)) // PANEL * PANEL

    def _panel(self, name: str, number: Value) -> Value:
        """Channel 0 of a panel of a or b, counted from distance 0; beyond the ends the last."""
        frame, f = self.place.frame, self.place.frame.f
        last = frame.word("position_last")
        number = number + frame.word("position_zero")
        number = f.select(f.compare(number, "<", last), number, last)
        number = f.select(f.compare(number, ">", 0), number, f.i64(0))
        inside = number * (frame.word("head_size") * (PANEL * 4))
        start = self.place.head * frame.word("position_step")
        return f.offset(frame.pointer(name), start + inside)


@dataclass(frozen=True)
class Strip:
    """The queries of a head whose products of keys are in scratch memory.

    Attributes:
        relative: The products.
        start: The first query.
        rows: Rows of products by key.
    """

    relative: Relative
    start: Value
    rows: Value

    def of_key(self, key: Value, query: Value) -> Value:
        """Where the product of a key for a query lies."""
        inside = query - self.start + _AHEAD
        return self.relative.place.frame.f.offset(self.rows, (key * _KEY_ROW + inside) * 4)

    def chunk(self, query: Value, queries: list[Value], start: Value, stop: Value) -> Chunk:
        """Emit the products of a chunk of queries.

        Args:
            query: Its first query, counted from the sequence.
            queries: Channel 0 of its vectors.
            start: First key that it visits.
            stop: The end of these keys.
        """
        relative, lanes = self.relative, self.relative.tile.lanes
        whole = (stop + (PANEL - 1)) // PANEL
        if relative.kinds.of_queries:
            panels = whole - start // PANEL + len(queries) * lanes // PANEL
            relative.of_queries(queries, query // PANEL - whole, panels)
        return Chunk(self, query, whole * PANEL, len(queries))


@dataclass(frozen=True)
class Chunk:
    """A chunk of queries whose products are in scratch memory.

    Attributes:
        strip: Its strip.
        query: Its first query.
        zero: The row of products where the first query meets itself, were it key 0.
        vectors: Its vectors.
    """

    strip: Strip
    query: Value
    zero: Value
    vectors: int

    def added(self, score: Value, key: Value, number: int) -> Value:
        """The score of a key and vector `number` of the queries with its products."""
        relative = self.strip.relative
        f, lanes = relative.place.frame.f, relative.tile.lanes
        if relative.kinds.of_queries:
            row = self.zero - key + number * lanes
            steps = range(0, lanes, _FIRST)
            rows = [relative.query_row(row + n, self.vectors, number) for n in steps]
            score = score + relative.blend(rows, _FIRST)
        if relative.kinds.of_keys:
            place = self.strip.of_key(key, self.query + number * lanes)
            score = score + f.load(relative.tile.floats, place)
        return score
