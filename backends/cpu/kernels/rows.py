"""fp32 linear that visits non-zeros one by one; also int8 where there is no dot product.

For each row and each non-zero: broadcast the weight, multiply-add the activations of a panel.

    for panel: for block of channels: for row: sums = row's partial sums
        for (channel, w) in row's non-zeros of the block: sums += w * input[channel, 0..W)

Every product loads its activations, and on most cores as many vectors are loaded in a cycle as are
multiplied: the loads of weights and indices come on top. So one load has two weights, another two
indices, and all tokens of the panel take them together: 8 + 0.8 cycles for two non-zeros and 64
tokens, where loads of their own for 32 tokens at a time made it 8 + 3.3. A block of 192 channels of
64 tokens has 48 KB. With 96 or 128 channels, of which a first-level cache of 32 KB holds a whole
block, a Zen 4 core took 1.05 to 1.15 times as long, with 256 1.04 to 1.19 times. Two sets of sums
(even and odd non-zeros) hide the latency of the multiply-add. Rows are visited by their number of
non-zeros, so that the end of the inner loop is predicted.

int8 without `vpdpbusd`: activations were widened to fp32 (kernel `expand`), and because
|w x| <= 128 * 255, up to 514 products add up exactly in 24 bits of mantissa. A block has fewer
channels than that, and each block's sum is added to an int32 sum: results are the exact integers,
where `vpmaddubsw` would saturate at 16 bits.

Weights: `order` int32[blocks][rows], rows by number of non-zeros within chunks of 64;
`row_start` int32[blocks][rows + 1] in that order, counted in pairs; `index` uint16[n] channels,
`weights` fp32[n], n even for each row; `initial` int32[rows] starts the integer sums. Partial sums
of several blocks wait in the scratch memory of the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels.rowloop import AHEAD, row_range
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = [
    "BLOCK",
    "CHUNK_ROWS",
    "FIELDS",
    "Part",
    "emit",
    "emit_with",
    "scratch_bytes",
    "symbol",
]

BLOCK = 192
"""Channels per block."""

CHUNK_ROWS = 64
"""Rows are sorted within chunks of this many, so that threads can divide them."""

FIELDS = (
    *EPILOGUE_FIELDS,
    "splits",
    "input",
    "columns",
    "blocks",
    "order",
    "row_start",
    "index",
    "weights",
    "initial",
)


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"rows_{isa.name}_w{width}_{epilogue.symbol}"


def scratch_bytes(words: Mapping[str, Any]) -> int:
    """Scratch memory of a part: sums of the rows of one panel, which wait there between blocks."""
    return 256 * int(words["rows"])


@dataclass(frozen=True)
class Part:
    """One pass over the rows, for one panel.

    Attributes:
        values: Where the panel's activations start.
        number: Number of the panel.
    """

    frame: Frame
    sink: Sink
    epilogue: Epilogue
    values: Value
    number: Value


Products = Callable[[Part, Value, Value], list[Value]]
"""Emits the fp32 sums of one row over some pairs of non-zeros, given the first and the end."""


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set, panel width and epilogue."""
    return emit_with(symbol(isa, width, epilogue), isa, width, epilogue, _products)


def emit_with(
    name: str, isa: Isa, width: int, epilogue: Epilogue, products: Products, *, item: int = 4
) -> Function:
    """A kernel that loops over its part's panels, blocks and rows.

    Args:
        name: Of the kernel.
        isa: Instruction set.
        width: Panel width.
        epilogue: What becomes of the sums.
        products: The sums of one row over its non-zeros of one block.
        item: Bytes of one activation.
    """
    frame = open_frame(name, Panel(isa, width), FIELDS)
    f = frame.f
    sink = Sink(frame, epilogue)
    space = frame.word("space")
    source = frame.buffer("input", space)
    panel_bytes = frame.word("columns") * (width * item)
    for number in f.loop(*frame.panels(space)):
        _rows(Part(frame, sink, epilogue, f.offset(source, panel_bytes * number), number), products)
    return f


def _rows(part: Part, products: Products) -> None:
    """All rows of this part, block by block."""
    frame, f, panel = part.frame, part.frame.f, part.frame.panel
    rows, last = part.sink.rows, frame.word("blocks") - 1
    start, stop = row_range(frame)
    for block in f.loop(0, last + 1):
        order = f.offset(frame.pointer("order"), block * rows * 4)
        starts = f.offset(frame.pointer("row_start"), block * (rows + 1) * 4)
        for place in f.loop(start, stop):
            row = f.convert("zext", f.load("i32", f.offset(order, place * 4)), "i64")
            begin = f.convert("zext", f.load("i32", f.offset(starts, place * 4)), "i64")
            end = f.convert("zext", f.load("i32", f.offset(starts, place * 4 + 4)), "i64")
            sums = products(part, begin, end)
            waiting = f.offset(frame.job("scratch"), (row - start) * panel.row_bytes)
            totals = _with_earlier(part, sums, block, row, waiting)
            with f.when(f.compare(block, "<", last)):
                panel.store(f, waiting, totals)
            with f.when(f.compare(block, "==", last)):
                part.sink.finish(totals, row, part.number)


def _products(part: Part, begin: Value, end: Value) -> list[Value]:
    """The sums of one row over the pairs `begin` to `end` of non-zeros."""
    frame, f, panel = part.frame, part.frame.f, part.frame.panel
    zero = f.const(panel.floats, 0)
    sums = [[f.var(zero) for _ in range(panel.vectors)] for _ in range(2)]
    index, weights = frame.pointer("index"), frame.pointer("weights")
    for pair in f.loop(begin, end):
        if panel.width < 64:
            f.prefetch(f.offset(weights, pair * 8 + AHEAD))
        channels = _two_channels(f, f.offset(index, pair * 4))
        broadcast = _two_weights(frame, f.offset(weights, pair * 8))
        for totals, channel, weight in zip(sums, channels, broadcast, strict=True):
            values = panel.load(f, f.offset(part.values, channel * panel.row_bytes))
            for total, value in zip(totals, values, strict=True):
                total.set(f.fma(value, weight, total.get()))
    return [a.get() + b.get() for a, b in zip(*sums, strict=True)]


def _two_channels(f: Function, place: Value) -> tuple[Value, Value]:
    """Two indices, from one load."""
    both = f.convert("zext", f.load("i32", place), "i64")
    return both & 0xFFFF, both >> 16


def _two_weights(frame: Frame, place: Value) -> tuple[Value, Value]:
    """Two weights, each in all lanes, from one load."""
    f, panel = frame.f, frame.panel
    both = f.splat(f.load("double", place), panel.lanes // 2)
    pairs = f.convert("bitcast", both, panel.floats)
    even = [lane // 2 * 2 for lane in range(panel.lanes)]
    odd = [lane + 1 for lane in even]
    return f.shuffle(pairs, pairs, even), f.shuffle(pairs, pairs, odd)


def _with_earlier(
    part: Part, own: list[Value], block: Value, row: Value, waiting: Value
) -> list[Value]:
    """The sums of this block plus those of the blocks before it."""
    frame, f, panel = part.frame, part.frame.f, part.frame.panel
    start, kind = f.const(panel.floats, 0), panel.floats
    if part.epilogue.integer:
        seed = f.load("i32", f.offset(frame.pointer("initial"), row * 4))
        start, kind = f.splat(seed, panel.lanes), panel.ints
        own = [panel.round_to_int(f, s) for s in own]
    earlier = [f.var(start) for _ in own]
    with f.when(f.compare(block, ">", 0)):
        for slot, value in zip(earlier, panel.load(f, waiting, kind), strict=True):
            slot.set(value)
    return [a + e.get() for a, e in zip(own, earlier, strict=True)]
