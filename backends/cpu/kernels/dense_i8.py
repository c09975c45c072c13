"""int8 linear that visits every weight: for layers whose zeros are too few to skip.

Six rows share the interleaving of four neighbouring channels (8 unpacks per 24 dot products, on
ports that the products leave free), so no interleaved copy of the activations is needed:

    rows 4g..4g+3 -> vpunpck -> 4 vectors;  for each of 6 rows: 4 x vpdpbusd, broadcast weight

Weights: int8[tiles][groups][6][4], rows and columns filled with zeros to multiples of 6 and 4;
`initial` int32[tiles * 6].
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, Var, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import tiles
from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS, each_tile, initial_sums
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "symbol"]

FIELDS = (*EPILOGUE_FIELDS, *tiles.FIELDS)


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"dense_i8_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set with dot products, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    each_tile(frame, Sink(frame, epilogue), 1, 4, _tile)
    return frame.f


def _tile(frame: Frame, values: Value, tile: Value, together: int) -> list[list[Var]]:
    """The sums of six rows over all channels, for four vectors of tokens."""
    f = frame.f
    columns = frame.word("columns")
    groups = (columns + 3) // 4
    weights = f.offset(frame.pointer("weights"), tile * groups * (4 * TILE_ROWS))
    sums = initial_sums(frame, tile, together)
    whole = columns // 4
    for group in f.loop(0, whole):
        channels = [group * 4 + n for n in range(4)]
        _group(frame, values, channels, f.offset(weights, group * (4 * TILE_ROWS)), sums)
    with f.when(f.compare(whole, "<", groups)):
        # The last channels stand in for those that do not exist: their weights are zero.
        limit = columns - 1
        wanted = [whole * 4 + n for n in range(4)]
        channels = [f.select(f.compare(c, "<", limit), c, limit) for c in wanted]
        _group(frame, values, channels, f.offset(weights, whole * (4 * TILE_ROWS)), sums)
    return sums


def _group(
    frame: Frame, values: Value, channels: list[Value], weights: Value, sums: list[list[Var]]
) -> None:
    """Add four channels to the sums of six rows."""
    f, panel = frame.f, frame.panel
    count = len(sums[0]) * panel.lanes
    octets = vector(count, "i8")
    rows = [f.load(octets, f.offset(values, c * panel.width), count) for c in channels]
    mixed = panel.quads(f, rows)
    for n, totals in enumerate(sums):
        weight = f.splat(f.load("i32", f.offset(weights, 4 * n)), panel.lanes)
        for total, activation in zip(totals, mixed, strict=True):
            total.set(panel.dot(f, total.get(), activation, weight))
