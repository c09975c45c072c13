"""Moves between spaces: pick one token per sequence, and give results back to the caller."""

from __future__ import annotations

from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.panel import Panel

__all__ = ["PICK_FIELDS", "UNPACK_FIELDS", "emit_pick", "emit_unpack"]

PICK_FIELDS = ("rows", "input", "output", "width_1")
UNPACK_FIELDS = ("rows", "input", "origin", "result", "space")


def emit_pick(isa: Isa, width: int) -> Function:
    """The first token of each sequence becomes a token of the space with one per sequence.

    `width_1` is the panel width of that space.
    """
    frame = open_frame(f"pick_{isa.name}_w{width}", Panel(isa, width), PICK_FIELDS)
    f, rows = frame.f, frame.word("rows")
    source, target = frame.buffer("input"), frame.buffer("output", 1)
    for number in frame.units(frame.job("sequence_count")):
        sequence = f.offset(frame.job("sequences"), number * 16)
        first = f.convert("zext", f.index("i32", sequence, 0), "i64")
        slot = f.convert("zext", f.index("i32", sequence, 3), "i64")
        left = _column(frame, source, rows, first, f.i64(width))
        right = _column(frame, target, rows, slot, frame.word("width_1"))
        for row in f.loop(0, rows):
            value = f.load("float", f.offset(left, row * (width * 4)))
            f.store(value, f.offset(right, row * (frame.word("width_1") * 4)))
    return f


def emit_unpack(isa: Isa, width: int) -> Function:
    """Copy every real token to its row of the caller's array [..., rows].

    `origin` names the job's table that gives each token's row there (int32, -1 for filling);
    `result` names the table that holds the array.
    """
    frame = open_frame(f"unpack_{isa.name}_w{width}", Panel(isa, width), UNPACK_FIELDS)
    f, rows, space = frame.f, frame.word("rows"), frame.word("space")
    source = frame.buffer("input", space)
    origin, result = _table(frame, "origin"), _table(frame, "result")
    for token in frame.units(frame.job("tokens", space)):
        place = f.load("i32", f.offset(origin, token * 4))
        with f.when(f.compare(place, ">=", 0)):
            target = f.offset(result, f.convert("zext", place, "i64") * rows * 4)
            column = _column(frame, source, rows, token, f.i64(width))
            for row in f.loop(0, rows):
                value = f.load("float", f.offset(column, row * (width * 4)))
                f.store(value, f.offset(target, row * 4))
    return f


def _table(frame: Frame, name: str) -> Value:
    f = frame.f
    return f.load("ptr", f.offset(frame.job("tables"), frame.word(name) * 8))


def _column(frame: Frame, base: Value, rows: Value, token: Value, width: Value) -> Value:
    """Where `token` lies in row 0 of a buffer."""
    f = frame.f
    number = token // width
    return f.offset(base, number * rows * width * 4 + (token - number * width) * 4)
