"""Layer norm over the channels of every token: lanes are tokens, so nothing is shuffled.

Three passes over a panel that lies in the second-level cache: mean, variance around it (the
two-pass form: no cancellation), then normalise and write fp32 rows, uint8 rows, or both.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsefx.backends.cpu.epilogue import quantize_row
from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.panel import Panel

__all__ = ["FIELDS", "emit", "symbol"]

FIELDS = (
    "rows",
    "input",
    "weight",
    "bias",
    "epsilon",
    "output",
    "output_bytes",
    "inverse_scale",
    "zero_point",
    "space",
)

_UNROLL = 4


def symbol(isa: Isa, width: int, *, floats: bool, octets: bool) -> str:
    """Name of the kernel."""
    return f"norm_{isa.name}_w{width}_{'f' if floats else ''}{'q' if octets else ''}"


def emit(isa: Isa, width: int, *, floats: bool, octets: bool) -> Function:
    """The kernel that writes fp32 rows if `floats` and uint8 rows if `octets`."""
    name = symbol(isa, width, floats=floats, octets=octets)
    frame = open_frame(name, Panel(isa, width), FIELDS)
    f = frame.f
    space = frame.word("space")
    for number in frame.units(frame.job("panels", space)):
        _panel(frame, space, number, floats=floats, octets=octets)
    return f


def _panel(frame: Frame, space: Value, number: Value, *, floats: bool, octets: bool) -> None:
    f, panel = frame.f, frame.panel
    rows = frame.word("rows")
    source = f.offset(frame.buffer("input", space), number * rows * panel.row_bytes)
    count = f.splat(f.convert("uitofp", rows, "float"), panel.lanes)
    mean = [s / count for s in _sum(frame, source, lambda value, _: value)]
    squares = _sum(frame, source, lambda value, n: (value - mean[n]) * (value - mean[n]))
    epsilon = f.splat(frame.number("epsilon"), panel.lanes)
    one = f.const(panel.floats, 1.0)
    root = f"llvm.sqrt.v{panel.lanes}f32"
    factor = [one / f.intrinsic(root, panel.floats, s / count + epsilon) for s in squares]
    for row in f.loop(0, rows):
        weight = f.splat(f.load("float", f.offset(frame.pointer("weight"), row * 4)), panel.lanes)
        bias = f.splat(f.load("float", f.offset(frame.pointer("bias"), row * 4)), panel.lanes)
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        scaled = [(v - m) * k for v, m, k in zip(values, mean, factor, strict=True)]
        result = [f.fma(v, weight, bias) for v in scaled]
        place = number * rows + row
        if floats:
            target = frame.buffer("output", space)
            panel.store(f, f.offset(target, place * panel.row_bytes), result)
        if octets:
            target = frame.buffer("output_bytes", space)
            quantize_row(frame, result, f.offset(target, place * panel.width))


def _sum(frame: Frame, source: Value, term: Callable[[Value, int], Value]) -> list[Value]:
    """Per token, the sum of a term over all rows; `_UNROLL` chains hide the adder's latency."""
    f, panel = frame.f, frame.panel
    zero = f.const(panel.floats, 0)
    unroll = max(1, _UNROLL * 2 // panel.vectors)
    chains = [[f.var(zero) for _ in range(panel.vectors)] for _ in range(unroll)]
    rows = frame.word("rows")
    whole = rows // unroll * unroll

    def add(row: Value, chain: int) -> None:
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        for n, value in enumerate(values):
            slot = chains[chain][n]
            slot.set(slot.get() + term(value, n))

    for row in f.loop(0, whole, unroll):
        for chain in range(unroll):
            add(row + chain, chain)
    for row in f.loop(whole, rows):
        add(row, 0)
    totals = [slot.get() for slot in chains[0]]
    for others in chains[1:]:
        totals = [t + slot.get() for t, slot in zip(totals, others, strict=True)]
    return totals
