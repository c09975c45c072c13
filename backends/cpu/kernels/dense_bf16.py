"""Linear on bf16 that visits every weight: `dense_f32` with two channels to a product.

    rows 2g, 2g+1 -> vpunpck -> 4 vectors;  for each of 6 rows: 4 x vdpbf16ps, broadcast weights

Weights: bf16[tiles][groups][6][2], rows and columns filled with zeros to multiples of 6 and 2.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, Var
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import tiles
from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS, each_tile
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "symbol"]

FIELDS = (*EPILOGUE_FIELDS, *tiles.FIELDS)


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"dense_bf16_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for an instruction set with products of bf16, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    each_tile(frame, Sink(frame, epilogue), 2, frame.panel.vectors, _tile)
    return frame.f


def _tile(frame: Frame, values: Value, tile: Value, together: int) -> list[list[Var]]:
    """The sums of six rows over all channels of one panel."""
    f, panel = frame.f, frame.panel
    columns = frame.word("columns")
    groups = (columns + 1) // 2
    weights = f.offset(frame.pointer("weights"), tile * groups * (4 * TILE_ROWS))
    zero = f.const(panel.floats, 0)
    sums = [[f.var(zero) for _ in range(together)] for _ in range(TILE_ROWS)]
    for group in f.loop(0, groups):
        # The last channel stands in for one that does not exist: its weights are zero.
        second = group * 2 + 1
        second = f.select(f.compare(second, "<", columns), second, columns - 1)
        rows = [f.offset(values, c * (2 * panel.width)) for c in (group * 2, second)]
        mixed = panel.pairs(f, *(panel.load_short(f, row) for row in rows))
        place = f.offset(weights, group * (4 * TILE_ROWS))
        for n, totals in enumerate(sums):
            two = f.splat(f.index("i32", place, n), panel.lanes)
            for total, value in zip(totals, mixed, strict=True):
                total.set(panel.dot_bf16(f, total.get(), value, two))
    return sums
