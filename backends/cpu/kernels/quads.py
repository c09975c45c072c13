"""int8 linear for unstructured zeros: four arbitrary non-zeros of a row per dot product.

`vpdpbusd` multiplies four neighbouring bytes, and with 90 % random zeros a fixed group of four
neighbours holds only 1.16 non-zeros: a kernel on fixed groups wastes 71 % of its products.
Here the four activations of a dot product are any four channels a, b, c, d, interleaved on the fly
(8 unpacks per 4 dot products, on ports that the products leave free):

    row a  a0 a1 a2 ...      vpunpck     a0 b0 c0 d0 | a1 b1 c1 d1 | ...   (4 vectors)
    row b  b0 b1 b2 ...   ------------>       *  broadcast (wa wb wc wd)
    row c  c0 c1 c2 ...                  vpdpbusd into 4 accumulators
    row d  d0 d1 d2 ...

Each product is a useful one, and activations are read as bytes, a quarter of what the interleaved
layout would read, so the panels may lie in the second-level cache.

Weights: `row_start` int32[spans][rows + 1] in quads; `index` uint16[quads][4] channels; `weights`
int8[quads][4]; the last quad of a row is filled with weight 0. `initial` int32[rows] starts the
sums (it holds -zero_point * sum of weights). With more channels than `SPAN` rows go through one
span of them after the other.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, Var, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels.rowloop import AHEAD, each_sparse_row, scratch_bytes
from sparsefx.backends.cpu.kernels.rowloop import SPARSE_FIELDS as FIELDS
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"quads_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set with dot products, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    each_sparse_row(frame, Sink(frame, epilogue), frame.word("columns"), _quad, _ask)
    return frame.f


def _ask(frame: Frame, first: Value) -> None:
    """Ask for weights of rows to come: as many lines as 32 quads have, 13 % of 1,000 channels."""
    f = frame.f
    for name, size, ahead in (("index", 8, AHEAD), ("weights", 4, AHEAD // 2)):
        place = f.offset(frame.pointer(name), first * size)
        for line in range(0, 32 * size, 64):
            f.prefetch(f.offset(place, ahead + line))


def _quad(frame: Frame, values: Value, quad: Value, sums: list[Var]) -> None:
    """Add one quad to the sums of a panel."""
    f, panel = frame.f, frame.panel
    place = f.offset(frame.pointer("index"), quad * 8)
    codes = f.offset(frame.pointer("weights"), quad * 4)
    weights = f.load("i32", codes)
    broadcast = f.splat(weights, panel.lanes)
    channels = [f.convert("zext", f.index("i16", place, n), "i64") for n in range(4)]
    octets = vector(panel.width, "i8")
    rows = [f.load(octets, f.offset(values, c * panel.width), panel.width) for c in channels]
    for total, mixed in zip(sums, panel.quads(f, rows), strict=True):
        total.set(panel.dot(f, total.get(), mixed, broadcast))
