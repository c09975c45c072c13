"""What all linears share: the rows of one thread, and the loop of sparse ones."""

from __future__ import annotations

from collections.abc import Callable

from sparsefx.backends.cpu.epilogue import EPILOGUE_FIELDS, Sink
from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value, Var

__all__ = [
    "AHEAD",
    "SPARSE_FIELDS",
    "each_sparse_row",
    "row_range",
]

AHEAD = 1024
"""How many bytes before their use weights are asked for. For that a Zen 4 core took 8 to 14 % less
time with 32 and 64 tokens in `quads`, with 32 in `rows`, from memory as from the third-level cache;
in `rows` with more tokens, and in `blocks`, 1 to 4 % more."""

SPARSE_FIELDS = (
    *EPILOGUE_FIELDS,
    "splits",
    "input",
    "columns",
    "row_start",
    "index",
    "weights",
    "initial",
)
"""What a kernel of :func:`each_sparse_row` is given in its step."""

Unit = Callable[[Frame, Value, Value, list[Var]], None]
"""Emits one unit (a quad or block): frame, panel of the input, number of the unit, its sums."""


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


def each_sparse_row(frame: Frame, sink: Sink, columns: Value, unit: Unit) -> None:
    """Loop over this part's panels, and over its rows of int8 weights in units.

    `row_start` counts the units of each row, `initial` starts the sums.
    """
    f, panel = frame.f, frame.panel
    space = frame.word("space")
    source = frame.buffer("input", space)
    starts, initial = frame.pointer("row_start"), frame.pointer("initial")
    start, stop = row_range(frame)
    for number in f.loop(*frame.panels(space)):
        values = f.offset(source, columns * panel.width * number)
        for row in f.loop(start, stop):
            begin = f.convert("zext", f.load("i32", f.offset(starts, row * 4)), "i64")
            end = f.convert("zext", f.load("i32", f.offset(starts, row * 4 + 4)), "i64")
            seed = f.splat(f.load("i32", f.offset(initial, row * 4)), panel.lanes)
            sums = [f.var(seed) for _ in range(panel.vectors)]
            for place in f.loop(begin, end):
                unit(frame, values, place, sums)
            sink.finish([total.get() for total in sums], row, number)
