"""The loops that all linears share: panels in groups, and the rows of one thread."""

from __future__ import annotations

from collections.abc import Iterator

from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value

__all__ = ["each_panel_group", "row_range"]


def each_panel_group(frame: Frame, most: int) -> Iterator[tuple[Value, int]]:
    """Loop over the panels of the step's space, `most` at a time, then one by one.

    Yields (number of the first panel, panels in the group) once per group size: the body is
    emitted for each size. Weights are decoded once per group.
    """
    f = frame.f
    panels = frame.job("panels", frame.word("space"))
    done = f.i64(0)
    if most > 1:
        groups = panels // most
        for group in f.loop(0, groups):
            yield group * most, most
        done = groups * most
    for number in f.loop(done, panels):
        yield number, 1


def row_range(frame: Frame) -> tuple[Value, Value]:
    """This part's rows: `splits` holds [0, rows] for a job of one part, then the borders."""
    f = frame.f
    alone = f.compare(frame.job("parts"), "==", 1)
    skip = f.select(alone, f.i64(0), f.i64(16))
    place = f.offset(frame.pointer("splits"), frame.job("part") * 8 + skip)
    return f.load("i64", place), f.load("i64", f.offset(place, 8))
