"""What all linears share: the rows of one thread, and the loop of sparse ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Sink
from sparsefx.backends.cpu.codegen.frame import Frame
from sparsefx.backends.cpu.codegen.ir import Value, Var

__all__ = ["AHEAD", "SPAN", "SPARSE_FIELDS", "each_sparse_row", "row_range", "scratch_bytes"]

AHEAD = 1024
"""How many bytes before their use weights are asked for. For that a Zen 4 core took 8 to 14 % less
time with 32 and 64 tokens in `quads`, with 32 in `rows`, from memory as from the third-level cache;
in `rows` with more tokens, and in `blocks`, 1 to 4 % more. Asked for once a row, not once a quad,
they take 5 % less again with 32 tokens."""

SPAN = 768
"""Channels of a span: those of 32 tokens of bytes have 24 KB, and stay in the first-level cache
while all rows pass."""

SPARSE_FIELDS = (
    *EPILOGUE_FIELDS,
    "splits",
    "input",
    "columns",
    "spans",
    "row_start",
    "index",
    "weights",
    "initial",
)
"""What a kernel of :func:`each_sparse_row` is given in its step."""

Unit = Callable[[Frame, Value, Value, list[Var]], None]
"""Emits one unit (a quad or block): frame, panel of the input, number of the unit, its sums."""

Begin = Callable[[Frame, Value], None]
"""Emits what comes before the units of a row: frame, number of the first unit."""


def row_range(frame: Frame) -> tuple[Value, Value]:
    """This part's rows: `splits` holds all rows, then the borders of the parts.

    A job of one part, and one whose parts are panels, has all rows.
    """
    f = frame.f
    whole = f.compare(frame.job("parts"), "==", 1)
    whole = whole | f.compare(frame.job("by_panel"), "==", 1)
    skip = f.select(whole, f.i64(0), f.i64(16) + frame.job("part") * 8)
    place = f.offset(frame.pointer("splits"), skip)
    return f.load("i64", place), f.load("i64", f.offset(place, 8))


def scratch_bytes(words: Mapping[str, Any]) -> int:
    """Scratch memory of a part: sums of the rows of one panel, which wait there between spans."""
    return 256 * int(words["rows"]) if int(words["spans"]) > 1 else 0


def each_sparse_row(
    frame: Frame, sink: Sink, columns: Value, unit: Unit, begin: Begin | None = None
) -> None:
    """Loop over this part's panels, and over its rows of int8 weights in units, span by span.

    `row_start` counts the units of each row of a span, `initial` starts the sums.
    """
    f, panel = frame.f, frame.panel
    space = frame.word("space")
    source = frame.buffer("input", space)
    last = frame.word("spans") - 1
    for number in f.loop(*frame.panels(space)):
        values = f.offset(source, columns * panel.width * number)
        for span in f.loop(0, last):
            for _, waiting, sums in _each_row(frame, sink, values, span, unit, begin):
                panel.store(f, waiting, sums)
        for row, _, sums in _each_row(frame, sink, values, last, unit, begin):
            sink.finish(sums, row, number)


def _each_row(
    frame: Frame, sink: Sink, values: Value, span: Value, unit: Unit, begin: Begin | None
) -> Iterator[tuple[Value, Value, list[Value]]]:
    """Loop over this part's rows of a span: row, where its sums may wait, sums so far."""
    f, panel = frame.f, frame.panel
    starts = f.offset(frame.pointer("row_start"), span * (sink.rows + 1) * 4)
    initial = frame.pointer("initial")
    start, stop = row_range(frame)
    for row in f.loop(start, stop):
        first = f.convert("zext", f.load("i32", f.offset(starts, row * 4)), "i64")
        end = f.convert("zext", f.load("i32", f.offset(starts, row * 4 + 4)), "i64")
        seed = f.splat(f.load("i32", f.offset(initial, row * 4)), panel.lanes)
        sums = [f.var(seed) for _ in range(panel.vectors)]
        waiting = f.offset(frame.job("scratch"), (row - start) * panel.row_bytes)
        with f.when(f.compare(span, ">", 0)):
            for total, value in zip(sums, panel.load(f, waiting, panel.ints), strict=True):
                total.set(value)
        if begin is not None:
            begin(frame, first)
        for place in f.loop(first, end):
            unit(frame, values, place, sums)
        yield row, waiting, [total.get() for total in sums]
