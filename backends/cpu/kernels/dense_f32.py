"""fp32 linear that visits every weight; also int8 where there is no dot product.

A register tile of 6 rows times up to four vectors of tokens: per channel, load the vectors once and
multiply-add them with six broadcast weights. For int8 the channels are cut into blocks of 512,
whose sums fp32 holds exactly (see kernel `rows`), and the blocks are added up as int32.

Weights: fp32[tiles][columns][6], rows filled with zeros to a multiple of 6;
`initial` int32[tiles * 6].
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, Var
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import tiles
from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS, each_tile, initial_sums
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "symbol"]

_EXACT_BLOCK = 512

FIELDS = (*EPILOGUE_FIELDS, *tiles.FIELDS)


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"dense_f32_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    together = min(frame.panel.vectors, 2 if isa.vector_bytes == 32 else 4)
    each_tile(frame, Sink(frame, epilogue), 4, together, _integers if epilogue.integer else _floats)
    return frame.f


def _floats(frame: Frame, values: Value, tile: Value, together: int) -> list[list[Var]]:
    """fp32 sums of six rows over all channels."""
    columns = frame.word("columns")
    return _products(frame, values, tile, frame.f.i64(0), columns, together)


def _integers(frame: Frame, values: Value, tile: Value, together: int) -> list[list[Var]]:
    """int32 sums of six rows, from blocks that are exact in fp32."""
    f, panel = frame.f, frame.panel
    columns = frame.word("columns")
    totals = initial_sums(frame, tile, together)
    for start in f.loop(0, columns, _EXACT_BLOCK):
        wanted = start + _EXACT_BLOCK
        stop = f.select(f.compare(wanted, "<", columns), wanted, columns)
        for row, sums in enumerate(_products(frame, values, tile, start, stop, together)):
            for total, part in zip(totals[row], sums, strict=True):
                total.set(total.get() + panel.round_to_int(f, part.get()))
    return totals


def _products(
    frame: Frame, values: Value, tile: Value, start: Value, stop: Value, together: int
) -> list[list[Var]]:
    """fp32 sums of six rows over channels `start` to `stop`."""
    f, panel = frame.f, frame.panel
    columns = frame.word("columns")
    weights = f.offset(frame.pointer("weights"), tile * columns * (4 * TILE_ROWS))
    zero = f.const(panel.floats, 0)
    sums = [[f.var(zero) for _ in range(together)] for _ in range(TILE_ROWS)]
    for channel in f.loop(start, stop):
        row_values = panel.load(f, f.offset(values, channel * panel.row_bytes), count=together)
        place = f.offset(weights, channel * (4 * TILE_ROWS))
        for n, totals in enumerate(sums):
            weight = f.splat(f.index("float", place, n), panel.lanes)
            for total, value in zip(totals, row_values, strict=True):
                total.set(f.fma(value, weight, total.get()))
    return sums
