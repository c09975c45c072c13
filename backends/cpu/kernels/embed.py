"""Sum of embedding rows, written as panel rows (a transpose in registers).

For 16 tokens and a vector of channels: gather the tokens' rows from every table, add, transpose
the block by log2(lanes) rounds of shuffles, store one vector per channel. Rows are fp32, or int8
with a scale for each row: such a row is multiplied where it is read, and nothing else differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.codegen.shuffles import transpose
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIRST_INDEX_TABLE", "Stored", "emit", "fields", "symbol"]

Stored = Literal["fp32", "int8"]
"""What the rows of a table are; those of int8 have an fp32 scale each."""

FIRST_INDEX_TABLE = 2
"""Number, in the job's tables, of the first array of indices (int32, one per token)."""


def fields(tables: tuple[Stored, ...]) -> tuple[str, ...]:
    """Words of the step: each table's rows are padded to whole vectors (`stride` values)."""
    own = {"fp32": ("table", "indices"), "int8": ("table", "indices", "scales")}
    words = (f"{word}{n}" for n, stored in enumerate(tables) for word in own[stored])
    return ("output", "rows", "stride", *words)


def symbol(isa: Isa, width: int, tables: tuple[Stored, ...]) -> str:
    """Name of the kernel."""
    return f"embed_{isa.name}_w{width}_{'_'.join(tables)}"


@dataclass(frozen=True)
class _Row:
    """The row of a table that a token asks for: its start, and its scale in every lane if int8."""

    start: Value
    scale: Value | None


def emit(isa: Isa, width: int, tables: tuple[Stored, ...]) -> Function:
    """The kernel that sums one row of each table."""
    frame = open_frame(symbol(isa, width, tables), Panel(isa, width), fields(tables))
    f, panel, lanes = frame.f, frame.panel, isa.lanes
    rows = frame.word("rows")
    for block in frame.units(frame.job("tokens") // lanes):
        token = block * lanes
        number = token // width
        inside = (token - number * width) * 4
        target = f.offset(frame.buffer("output"), number * rows * panel.row_bytes + inside)
        found = [
            [_row(frame, n, stored, token + i) for n, stored in enumerate(tables)]
            for i in range(lanes)
        ]
        for channel in f.loop(0, rows, lanes):
            block_values = [_sum(frame, each, channel) for each in found]
            for n, value in enumerate(transpose(f, block_values)):
                row = channel + n
                with f.when(f.compare(row, "<", rows)):
                    f.store(value, f.offset(target, row * panel.row_bytes), lanes * 4)
    return f


def _row(frame: Frame, table: int, stored: Stored, token: Value) -> _Row:
    """The row of a table that a token asks for."""
    f = frame.f
    slot = f.offset(frame.job("tables"), frame.word(f"indices{table}") * 8)
    index = f.convert("sext", f.load("i32", f.offset(f.load("ptr", slot), token * 4)), "i64")
    first, item = frame.pointer(f"table{table}"), 1 if stored == "int8" else 4
    start = f.offset(first, index * (frame.word("stride") * item))
    if stored == "fp32":
        return _Row(start, None)
    scale = f.load("float", f.offset(frame.pointer(f"scales{table}"), index * 4))
    return _Row(start, f.splat(scale, frame.panel.isa.lanes))


def _sum(frame: Frame, rows: list[_Row], channel: Value) -> Value:
    """A vector of channels of the sum of rows."""
    total, *others = (_channels(frame, row, channel) for row in rows)
    for other in others:
        total = total + other
    return total


def _channels(frame: Frame, row: _Row, channel: Value) -> Value:
    """A vector of channels of one row."""
    f, lanes = frame.f, frame.panel.isa.lanes
    floats = vector(lanes, "float")
    if row.scale is None:
        return f.load(floats, f.offset(row.start, channel * 4))
    codes = f.load(vector(lanes, "i8"), f.offset(row.start, channel))
    values = f.convert("sitofp", f.convert("sext", codes, vector(lanes, "i32")), floats)
    # Rounded by itself, as in the reference: `*` would let it melt into the sum after it.
    return f.operate("fmul", values, row.scale)
