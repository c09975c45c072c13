"""The loops that all linears share: panels in groups, and the rows of one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sparsefx.backends.cpu.epilogue import EPILOGUE_FIELDS, Sink
from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value, Var

__all__ = [
    "AHEAD",
    "SPARSE_FIELDS",
    "each_panel_group",
    "each_sparse_row",
    "panel_range",
    "row_range",
]

AHEAD = 1024
"""How many bytes before their use weights are asked for where few tokens share them. For that a
Zen 4 core took 8 to 14 % less time with 32 and 64 tokens in `quads`, with 32 in `rows`, from memory
as from the third-level cache; with more tokens, and in `blocks`, 1 to 4 % more."""

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

Unit = Callable[[Frame, list[Value], Value, list[list[Var]]], None]
"""Emits one unit (a quad or block): frame, panels of the input, number of the unit, their sums."""


def each_panel_group(frame: Frame, most: int) -> Iterator[tuple[Value, int]]:
    """Loop over this part's panels of the step's space, `most` at a time, then one by one.

    Yields (number of the first panel, panels in the group) once per group size: the body is
    emitted for each size. Weights are decoded once per group.
    """
    f = frame.f
    done, stop = panel_range(frame)
    if most > 1:
        whole = done + (stop - done) // most * most
        for group in f.loop(done, whole, most):
            yield group, most
        done = whole
    for number in f.loop(done, stop):
        yield number, 1


def panel_range(frame: Frame) -> tuple[Value, Value]:
    """This part's panels of the step's space: all of them, unless parts are panels."""
    f = frame.f
    panels = frame.job("panels", frame.word("space"))
    own = frame.share(panels)
    by_panel = f.compare(frame.job("by_panel"), "==", 1)
    return f.select(by_panel, own[0], f.i64(0)), f.select(by_panel, own[1], panels)


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
    """Loop over this part's rows of int8 weights in units, for one or two panels of tokens.

    `row_start` counts the units of each row, `initial` starts the sums.
    """
    f, panel = frame.f, frame.panel
    source = frame.buffer("input", frame.word("space"))
    starts, initial = frame.pointer("row_start"), frame.pointer("initial")
    for first, count in each_panel_group(frame, 2 if panel.width == 64 else 1):
        inputs = [f.offset(source, columns * panel.width * (first + n)) for n in range(count)]
        start, stop = row_range(frame)
        for row in f.loop(start, stop):
            begin = f.convert("zext", f.load("i32", f.offset(starts, row * 4)), "i64")
            end = f.convert("zext", f.load("i32", f.offset(starts, row * 4 + 4)), "i64")
            seed = f.splat(f.load("i32", f.offset(initial, row * 4)), panel.lanes)
            sums = [[f.var(seed) for _ in range(panel.vectors)] for _ in range(count)]
            for number in f.loop(begin, end):
                unit(frame, inputs, number, sums)
            for n in range(count):
                sink.finish([s.get() for s in sums[n]], row, first + n)
