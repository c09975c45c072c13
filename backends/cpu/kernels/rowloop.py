"""The loops that all linears share: panels in groups, and the rows of one thread."""

from __future__ import annotations

from collections.abc import Iterator

from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value

__all__ = ["each_panel_group", "row_range"]


def each_panel_group(frame: Frame, most: int) -> Iterator[tuple[Value, int]]:
    """Loop over this part's panels of the step's space, `most` at a time, then one by one.

    Yields (number of the first panel, panels in the group) once per group size: the body is
    emitted for each size. Weights are decoded once per group.
    """
    f = frame.f
    panels = frame.job("panels", frame.word("space"))
    own = frame.share(panels)
    by_panel = f.compare(frame.job("by_panel"), "==", 1)
    done = f.select(by_panel, own[0], f.i64(0))
    stop = f.select(by_panel, own[1], panels)
    if most > 1:
        whole = done + (stop - done) // most * most
        for group in f.loop(done, whole, most):
            yield group, most
        done = whole
    for number in f.loop(done, stop):
        yield number, 1


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
