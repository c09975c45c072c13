"""Which head of which sequence a kernel of attention works on, and where its rows lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.frame import Frame
from sparsefx.backends.cpu.codegen.ir import Value

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """One head of one sequence: where its rows of q, k, v and of the output lie.

    Attributes:
        head: Number of the head.
        first: First token of the sequence in the slab.
        length: Its tokens.
        starts: Row 0 of the head in the first panel, for q, k, v, output.
        rows: Rows per panel of the same buffers.
    """

    frame: Frame
    head: Value
    first: Value
    length: Value
    starts: dict[str, Value]
    rows: dict[str, Value]

    @classmethod
    def each(cls, frame: Frame, items: Mapping[str, int] | None = None) -> Iterator[Place]:
        """Loop over this part's share of (sequence, head) pairs.

        Args:
            frame: The kernel.
            items: Bytes of one value of q, k, v, where it is not 4.
        """
        f, panel = frame.f, frame.panel
        heads, size = frame.word("heads"), frame.word("head_size")
        for unit in frame.units(frame.job("sequence_count") * heads):
            head = unit - unit // heads * heads
            row = head * size
            starts = {}
            for part in "qkv":
                line = panel.width * (items or {}).get(part, 4)
                place = (frame.word(f"{part}_first") + row) * line
                starts[part] = f.offset(frame.buffer(part), place)
            starts["output"] = f.offset(frame.buffer("output"), row * panel.row_bytes)
            first, length = frame.sequence(unit // heads, "first", "length")
            rows = {name: frame.word(f"{name}_rows") for name in starts}
            yield cls(frame, head, first, length, starts, rows)

    def at(self, name: str, token: Value) -> Value:
        """Where `token` of the slab lies in the head's row 0 of a buffer."""
        f, panel = self.frame.f, self.frame.panel
        number = token // panel.width
        inside = (token - number * panel.width) * 4
        start = self.starts[name]
        return f.offset(start, number * self.rows[name] * panel.row_bytes + inside)
