"""Moves between spaces: one token for each sequence, and results back to the caller."""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["POOL_FIELDS", "UNPACK_FIELDS", "emit_mean", "emit_pick", "emit_unpack"]

POOL_FIELDS = ("rows", "input", "output", "width_1")
"""`width_1` is the panel width of the space with one token per sequence."""
UNPACK_FIELDS = ("rows", "input", "origin", "result", "space")


def emit_pick(isa: Isa, width: int) -> Function:
    """The first token of each sequence becomes a token of the space with one per sequence."""
    frame = open_frame(f"pick_{isa.name}_w{width}", Panel(isa, width), POOL_FIELDS)
    f, rows = frame.f, frame.word("rows")
    source, target = frame.buffer("input"), frame.buffer("output", 1)
    for number in frame.units(frame.job("sequence_count")):
        first, slot = frame.sequence(number, "first", "slot")
        left = _column(frame, source, rows, first, f.i64(width))
        right = _column(frame, target, rows, slot, frame.word("width_1"))
        for row in f.loop(0, rows):
            value = f.load("float", f.offset(left, row * (width * 4)))
            f.store(value, f.offset(right, row * (frame.word("width_1") * 4)))
    return f


def emit_mean(isa: Isa, width: int) -> Function:
    """The mean of the real tokens of each sequence becomes such a token."""
    frame = open_frame(f"mean_{isa.name}_w{width}", Panel(isa, width), POOL_FIELDS)
    f, rows = frame.f, frame.word("rows")
    source, target = frame.buffer("input"), frame.buffer("output", 1)
    other = frame.word("width_1")
    for unit in frame.units(frame.job("sequence_count") * rows):
        number = unit // rows
        row = unit - number * rows
        first, length, slot = frame.sequence(number, "first", "length", "slot")
        place = _place(rows, row, slot, other)
        mean = _mean(frame, isa.lanes, source, row, (first, length))
        f.store(mean, f.offset(target, place * 4))
    return f


def _mean(frame: Frame, lanes: int, source: Value, row: Value, span: tuple[Value, Value]) -> Value:
    """The mean of one row over the real tokens among `span` (first, how many)."""
    f, width, rows = frame.f, frame.panel.width, frame.word("rows")
    floats, ints = vector(lanes, "float"), vector(lanes, "i32")
    origin = f.load("ptr", frame.job("tables"))
    zero, one = f.const(floats, 0), f.const(floats, 1.0)
    total, count = f.var(zero), f.var(zero)
    for start in f.loop(0, span[1], lanes):
        token = span[0] + start
        value = f.load(floats, f.offset(source, _place(rows, row, token, f.i64(width)) * 4))
        # Panels end with filling, and padding between real tokens may have a place: both are < 0.
        real = f.compare(f.load(ints, f.offset(origin, token * 4)), ">=", f.const(ints, 0))
        total.set(total.get() + f.select(real, value, zero))
        count.set(count.get() + f.select(real, one, zero))
    name = f"llvm.vector.reduce.fadd.v{lanes}f32"
    nothing = f.const("float", 0)
    summed, counted = (f.intrinsic(name, "float", nothing, v.get()) for v in (total, count))
    return summed / counted


def _place(rows: Value, row: Value, token: Value, width: Value) -> Value:
    """Number of the value that a token has in a row of a buffer."""
    number = token // width
    return (number * rows + row) * width + (token - number * width)


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
