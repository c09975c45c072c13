"""Sum of embedding rows, written as panel rows (a transpose in registers).

For 16 tokens and a vector of channels: gather the tokens' rows from every table, add, transpose
the block by log2(lanes) rounds of shuffles, store one vector per channel.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.codegen.shuffles import transpose
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIRST_INDEX_TABLE", "emit", "fields", "symbol"]

FIRST_INDEX_TABLE = 2
"""Number, in the job's tables, of the first array of indices (int32, one per token)."""


def fields(tables: int) -> tuple[str, ...]:
    """Words of the step: each table's rows are padded to whole vectors (`stride` fp32 values)."""
    return (
        "output",
        "rows",
        "stride",
        *(f"{w}{n}" for n in range(tables) for w in ("table", "indices")),
    )


def symbol(isa: Isa, width: int, tables: int) -> str:
    """Name of the kernel."""
    return f"embed_{isa.name}_w{width}_{tables}"


def emit(isa: Isa, width: int, tables: int) -> Function:
    """The kernel that sums rows of `tables` tables."""
    frame = open_frame(symbol(isa, width, tables), Panel(isa, width), fields(tables))
    f, panel, lanes = frame.f, frame.panel, isa.lanes
    rows = frame.word("rows")
    for block in frame.units(frame.job("tokens") // lanes):
        token = block * lanes
        number = token // width
        inside = (token - number * width) * 4
        target = f.offset(frame.buffer("output"), number * rows * panel.row_bytes + inside)
        places = [[_row(frame, n, token + i) for n in range(tables)] for i in range(lanes)]
        for channel in f.loop(0, rows, lanes):
            block_values = [_sum(frame, lanes, p, channel) for p in places]
            for n, value in enumerate(transpose(f, block_values)):
                row = channel + n
                with f.when(f.compare(row, "<", rows)):
                    f.store(value, f.offset(target, row * panel.row_bytes), lanes * 4)
    return f


def _row(frame: Frame, table: int, token: Value) -> Value:
    """Start of the table row that a token asks for."""
    f = frame.f
    slot = f.offset(frame.job("tables"), frame.word(f"indices{table}") * 8)
    index = f.load("i32", f.offset(f.load("ptr", slot), token * 4))
    stride = frame.word("stride") * 4
    return f.offset(frame.pointer(f"table{table}"), f.convert("sext", index, "i64") * stride)


def _sum(frame: Frame, lanes: int, places: list[Value], channel: Value) -> Value:
    f = frame.f
    floats = vector(lanes, "float")
    parts = [f.load(floats, f.offset(p, channel * 4)) for p in places]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
