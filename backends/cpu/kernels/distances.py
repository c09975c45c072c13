"""What attention adds to a score by the distance of query and key alone.

A bias for each head and distance, or -1e30 where a window hides the key. The table of a head holds
the distance query - key = i - zero at place i, so 16 queries that follow each other read 16 places
that follow each other. Towards both ends the table is constant: a distance beyond it reads the end.

A sequence may hold tokens that are hidden as keys (padding between real tokens, which keeps the
distances of those around it): `hidden` of the job is 0 for a real token, -1e30 for such a one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.ir import Value, vector
from sparsefx.backends.cpu.kernels.place import Place

__all__ = ["EDGE", "FAR", "FIELDS", "HIDDEN", "Distances"]

FIELDS = ("distances", "distance_step", "distance_zero", "distance_last", "before", "after")
"""The table, bytes from one head to the next (0 if all share one), the place of distance 0, the
last place that may be read from, and how many tokens before and after itself a query sees."""

EDGE = 16
"""Constant places at both ends of the table: the queries of a vector, at most."""

FAR = 1 << 40
"""`before` and `after` of attention without a window."""

HIDDEN = -1e30


@dataclass(frozen=True)
class Distances:
    """The table of one head, and the hidden tokens of one sequence.

    Attributes:
        place: The head and the sequence.
        table: The head's row of the table.
        hidden: What hides keys, from the first token of the sequence on.
    """

    place: Place
    table: Value
    hidden: Value

    @classmethod
    def of(cls, place: Place) -> Distances:
        """Those of a head of a sequence."""
        frame, f = place.frame, place.frame.f
        table = f.offset(frame.pointer("distances"), place.head * frame.word("distance_step"))
        return cls(place, table, f.offset(frame.job("hidden"), place.first * 4))

    def of_key(self, key: Value, lanes: int) -> Value:
        """What hides a key, for every query."""
        f = self.place.frame.f
        return f.splat(f.load("float", f.offset(self.hidden, key * 4)), lanes)

    def bias(self, query: Value, key: Value, lanes: int) -> Value:
        """The table's values for `lanes` queries from `query` on; both count from the sequence."""
        frame, f = self.place.frame, self.place.frame.f
        zero, last = frame.word("distance_zero"), frame.word("distance_last")
        start = query - key + zero
        start = f.select(f.compare(start, "<", last), start, last)
        start = f.select(f.compare(start, ">", 0), start, f.i64(0))
        return f.load(vector(lanes, "float"), f.offset(self.table, start * 4))

    def visible(self, query: Value, count: int, block: int) -> tuple[Value, Value]:
        """First key, a multiple of `block`, and end of those that `count` queries may see."""
        frame, f = self.place.frame, self.place.frame.f
        start = query - frame.word("before")
        start = f.select(f.compare(start, ">", 0), start, f.i64(0)) // block * block
        stop = query + frame.word("after") + count
        length = self.place.length
        return start, f.select(f.compare(stop, "<", length), stop, length)
