"""fp32 linear that visits non-zeros one by one; also int8 where there is no dot product.

For each row and each non-zero: broadcast the weight, multiply-add a whole panel row of activations.

    for block of channels: for row: sums = row's partial sums
        for (channel, w) in row's non-zeros of the block: sums += w * input[channel, 0..W)

int8 without `vpdpbusd`: activations were widened to fp32 (kernel `expand`), and because
|w x| <= 127 * 255, up to 517 products add up exactly in 24 bits of mantissa. Blocks are cut so that
they hold no more non-zeros than that, and each block's sum is added to an int32 sum: results are
the exact integers, where `vpmaddubsw` would saturate at 16 bits.

Weights: `row_start` int32[blocks][rows + 1], `index` uint16[n] channels, `weights` fp32[n];
`initial` int32[rows] starts the integer sums. Partial sums of several blocks wait in the scratch
memory of the thread.
"""

from __future__ import annotations

from sparsefx.backends.cpu.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value, Var
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.rowloop import each_panel_group, row_range
from sparsefx.backends.cpu.panel import Panel

__all__ = ["EXACT_PRODUCTS", "FIELDS", "emit", "symbol"]

EXACT_PRODUCTS = (1 << 24) // (128 * 255)
"""Products of an int8 weight and a uint8 activation whose sum fp32 holds exactly: 514."""

FIELDS = (
    *EPILOGUE_FIELDS,
    "splits",
    "input",
    "columns",
    "blocks",
    "row_start",
    "index",
    "weights",
    "initial",
)


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"rows_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    f, panel = frame.f, frame.panel
    sink = Sink(frame, epilogue)
    source = frame.buffer("input", frame.word("space"))
    panel_bytes = frame.word("columns") * panel.row_bytes
    start, stop = row_range(frame)
    for number, _ in each_panel_group(frame, 1):
        values = f.offset(source, panel_bytes * number)
        for block in f.loop(0, frame.word("blocks")):
            for row in f.loop(start, stop):
                _row(frame, sink, epilogue, values, block, row, row - start, number)
    return f


def _row(
    frame: Frame,
    sink: Sink,
    epilogue: Epilogue,
    values: Value,
    block: Value,
    row: Value,
    local: Value,
    number: Value,
) -> None:
    """One row of one block: its products, then the spill or the epilogue."""
    f, panel = frame.f, frame.panel
    place = f.offset(frame.pointer("row_start"), (block * (sink.rows + 1) + row) * 4)
    begin = f.convert("zext", f.load("i32", place), "i64")
    end = f.convert("zext", f.load("i32", f.offset(place, 4)), "i64")
    zero = f.const(panel.floats, 0)
    sums = [f.var(zero) for _ in range(panel.vectors)]
    index, weights = frame.pointer("index"), frame.pointer("weights")
    for n in f.loop(begin, end):
        channel = f.convert("zext", f.load("i16", f.offset(index, n * 2)), "i64")
        weight = f.splat(f.load("float", f.offset(weights, n * 4)), panel.lanes)
        row_values = panel.load(f, f.offset(values, channel * panel.row_bytes))
        for total, value in zip(sums, row_values, strict=True):
            total.set(f.fma(value, weight, total.get()))
    waiting = f.offset(frame.job("scratch"), local * panel.row_bytes)
    totals = _with_earlier(frame, epilogue, sums, block, row, waiting)
    last = f.compare(block + 1, "==", frame.word("blocks"))
    with f.when(f.compare(block + 1, "<", frame.word("blocks"))):
        panel.store(f, waiting, totals)
    with f.when(last):
        sink.finish(totals, row, number)


def _with_earlier(
    frame: Frame, epilogue: Epilogue, sums: list[Var], block: Value, row: Value, waiting: Value
) -> list[Value]:
    """The sums of this block plus those of the blocks before it."""
    f, panel = frame.f, frame.panel
    kind = panel.ints if epilogue.integer else panel.floats
    if epilogue.integer:
        seed = f.load("i32", f.offset(frame.pointer("initial"), row * 4))
        start = f.splat(seed, panel.lanes)
        own = [panel.round_to_int(f, s.get()) for s in sums]
    else:
        start = f.const(panel.floats, 0)
        own = [s.get() for s in sums]
    earlier = [f.var(start) for _ in own]
    with f.when(f.compare(block, ">", 0)):
        for slot, value in zip(earlier, panel.load(f, waiting, kind), strict=True):
            slot.set(value)
    return [a + e.get() for a, e in zip(own, earlier, strict=True)]
