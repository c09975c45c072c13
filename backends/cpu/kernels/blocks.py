"""int8 linear for zeros in aligned groups of four columns (1x4 patterns).

The four weights of a block meet four neighbouring channels, so these lie interleaved, as `vpdpbusd`
reads them: a block costs its dot products alone, where a quad also mixes its four channels. The
step `interleave` writes that layout once for all rows:

    [panels] [channels / 4] [4 vectors] [tokens of a vector] [4 channels]

AMX tiles read the same layout, filled to a multiple of 64 channels there.

Weights: `row_start` int32[spans][rows + 1] in blocks; `index` uint16[blocks], channel / 4;
`weights` int8[blocks][4]. `initial` int32[rows] starts the sums (it holds -zero_point * sum of
weights). With more channels than `SPAN` rows go through one span of them after the other.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, Var
from sparsefx.backends.cpu.codegen.panel import Panel, interleaved_rows
from sparsefx.backends.cpu.kernels.rowloop import SPARSE_FIELDS as FIELDS
from sparsefx.backends.cpu.kernels.rowloop import each_sparse_row, scratch_bytes
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "INTERLEAVE_FIELDS", "emit", "emit_interleave", "scratch_bytes", "symbol"]

INTERLEAVE_FIELDS = ("rows", "columns", "input", "output_bytes", "space")


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"blocks_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set with dot products, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    whole = interleaved_rows(1, isa)
    columns = (frame.word("columns") + (whole - 1)) // whole * whole
    each_sparse_row(frame, Sink(frame, epilogue), columns, _block)
    return frame.f


def _block(frame: Frame, values: Value, block: Value, sums: list[Var]) -> None:
    """Add one block to the sums of a panel."""
    f, panel = frame.f, frame.panel
    group = f.convert("zext", f.load("i16", f.offset(frame.pointer("index"), block * 2)), "i64")
    weights = f.load("i32", f.offset(frame.pointer("weights"), block * 4))
    broadcast = f.splat(weights, panel.lanes)
    mixed = panel.load(f, f.offset(values, group * panel.row_bytes), panel.ints)
    for total, value in zip(sums, mixed, strict=True):
        total.set(panel.dot(f, total.get(), value, broadcast))


def emit_interleave(isa: Isa, width: int) -> Function:
    """uint8 rows to groups of four interleaved rows; `rows` counts those of the result."""
    name = f"interleave_{isa.name}_w{width}"
    frame = open_frame(name, Panel(isa, width), INTERLEAVE_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    columns, groups = frame.word("columns"), frame.word("rows") // 4
    source, target = frame.buffer("input", space), frame.buffer("output_bytes", space)
    for number, group in frame.each_unit(groups, space):
        first = group * 4
        rows = []
        for n in range(4):
            # The last channel stands in for those that do not exist: their weights are zero.
            channel = f.select(f.compare(first + n, "<", columns), first + n, columns - 1)
            place = f.offset(source, (number * columns + channel) * width)
            rows.append(f.load(f"<{width} x i8>", place, width))
        place = f.offset(target, (number * groups + group) * panel.row_bytes)
        panel.store(f, place, panel.quads(f, rows))
    return f
