"""Layer norm and RMS norm over the channels of every token: lanes are tokens, nothing is shuffled.

Three passes over a panel that lies in the second-level cache: mean, variance around it (the
two-pass form: no cancellation), then normalise and write fp32 rows, uint8 rows, or both. An RMS
norm takes the mean of squares in place of the variance: no first pass, and no bias.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsefx.backends.cpu.epilogue import quantize_row
from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.panel import Panel

__all__ = ["FIELDS", "RMS_FIELDS", "emit", "symbol"]

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
RMS_FIELDS = tuple(name for name in FIELDS if name != "bias")

_UNROLL = 4


def symbol(isa: Isa, width: int, *, floats: bool, octets: bool, centred: bool = True) -> str:
    """Name of the kernel."""
    kind = "norm" if centred else "rms_norm"
    return f"{kind}_{isa.name}_w{width}_{'f' if floats else ''}{'q' if octets else ''}"


def emit(isa: Isa, width: int, *, floats: bool, octets: bool, centred: bool = True) -> Function:
    """The kernel that writes fp32 rows if `floats` and uint8 rows if `octets`.

    It is a layer norm if `centred`, else an RMS norm.
    """
    name = symbol(isa, width, floats=floats, octets=octets, centred=centred)
    frame = open_frame(name, Panel(isa, width), FIELDS if centred else RMS_FIELDS)
    f = frame.f
    space = frame.word("space")
    for number in frame.units(frame.job("panels", space)):
        _panel(frame, space, number, floats=floats, octets=octets, centred=centred)
    return f


def _panel(
    frame: Frame, space: Value, number: Value, *, floats: bool, octets: bool, centred: bool
) -> None:
    f, panel = frame.f, frame.panel
    rows = frame.word("rows")
    source = f.offset(frame.buffer("input", space), number * rows * panel.row_bytes)
    count = f.splat(f.convert("uitofp", rows, "float"), panel.lanes)
    mean: list[Value] = []
    if centred:
        mean = [s / count for s in _sum(frame, source, lambda value, _: value)]

    def shifted(value: Value, n: int) -> Value:
        return value - mean[n] if centred else value

    squares = _sum(frame, source, lambda value, n: shifted(value, n) * shifted(value, n))
    epsilon = f.splat(frame.number("epsilon"), panel.lanes)
    one = f.const(panel.floats, 1.0)
    root = f"llvm.sqrt.v{panel.lanes}f32"
    factor = [one / f.intrinsic(root, panel.floats, s / count + epsilon) for s in squares]
    for row in f.loop(0, rows):
        weight = f.splat(f.load("float", f.offset(frame.pointer("weight"), row * 4)), panel.lanes)
        if centred:
            bias = f.splat(f.load("float", f.offset(frame.pointer("bias"), row * 4)), panel.lanes)
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        scaled = [shifted(v, n) * k for n, (v, k) in enumerate(zip(values, factor, strict=True))]
        result = [f.fma(v, weight, bias) if centred else v * weight for v in scaled]
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
