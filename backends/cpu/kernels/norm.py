"""Layer norm and RMS norm over the channels of every token: lanes are tokens, nothing is shuffled.

Two steps, so that threads may share the channels of one panel: a thread reads and writes the rows
that it has in its own cache, and only sums cross over. `norm_sums` takes mean and squares around
it of each of 16 chunks of channels (in two passes: no cancellation), `norm` combines them as Chan,
Golub and LeVeque (1979) do, then normalises and writes fp32 rows, uint8 rows, or both:

    n = sum n_c    mean = sum n_c mean_c / n    squares = sum squares_c + n_c (mean_c - mean)^2

The chunks do not depend on the threads, so the result does not either. An RMS norm takes squares
around zero: no mean, and no bias.
"""

from __future__ import annotations

from collections.abc import Iterator

from sparsefx.backends.cpu.codegen.epilogue import quantize_row
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["CHUNKS", "FIELDS", "RMS_FIELDS", "SUMS_FIELDS", "emit", "emit_rms_sums", "emit_sums"]

CHUNKS = 16
"""Ranges of channels whose sums are taken apart: in `sums` two rows each, mean and squares."""

SUMS_FIELDS = ("rows", "input", "sums", "space")
FIELDS = (
    "rows",
    "input",
    "sums",
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

_CHAINS = 8
"""Sums that are taken side by side, which hides the adder's latency."""


def emit_sums(isa: Isa, width: int) -> Function:
    """The kernel that writes mean and squares of each chunk of channels, for a layer norm."""
    return _emit_sums(isa, width, centred=True)


def emit_rms_sums(isa: Isa, width: int) -> Function:
    """The kernel that writes squares of each chunk of channels, for an RMS norm."""
    return _emit_sums(isa, width, centred=False)


def _emit_sums(isa: Isa, width: int, *, centred: bool) -> Function:
    name = f"{'' if centred else 'rms_'}norm_sums_{isa.name}_w{width}"
    frame = open_frame(name, Panel(isa, width), SUMS_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    rows = frame.word("rows")
    source, target = frame.buffer("input", space), frame.buffer("sums", space)
    for number, chunk in frame.each_unit(f.i64(CHUNKS), space):
        begin = f.offset(source, number * rows * panel.row_bytes)
        start, stop = rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS
        place = f.offset(target, (number * CHUNKS + chunk) * (2 * panel.row_bytes))
        mean = [f.const(panel.floats, 0)] * panel.vectors
        if centred:
            one = f.const(panel.floats, 1.0)
            count = _splat(frame, stop - start)
            least = f.select(f.compare(count, ">", one), count, one)  # a chunk may be empty
            totals = [f.const(panel.floats, 0)] * panel.vectors
            mean = [s / least for s in _sum(frame, begin, start, stop, totals, square=False)]
            panel.store(f, place, mean)
        squares = _sum(frame, begin, start, stop, mean, square=True)
        panel.store(f, f.offset(place, panel.row_bytes), squares)
    return f


def emit(isa: Isa, width: int, *, floats: bool, octets: bool, centred: bool = True) -> Function:
    """The kernel that writes fp32 rows if `floats` and uint8 rows if `octets`.

    It is a layer norm if `centred`, else an RMS norm.
    """
    kind = "norm" if centred else "rms_norm"
    name = f"{kind}_{isa.name}_w{width}_{'f' if floats else ''}{'q' if octets else ''}"
    frame = open_frame(name, Panel(isa, width), FIELDS if centred else RMS_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    rows = frame.word("rows")
    source = frame.buffer("input", space)
    start, stop = frame.unit_range(rows)
    for number in f.loop(*frame.panels(space)):
        mean, factor = _combined(frame, number, centred)
        for row in f.loop(start, stop):
            place = number * rows + row
            values = panel.load(f, f.offset(source, place * panel.row_bytes))
            weight = f.splat(
                f.load("float", f.offset(frame.pointer("weight"), row * 4)), panel.lanes
            )
            if centred:
                bias = f.splat(
                    f.load("float", f.offset(frame.pointer("bias"), row * 4)), panel.lanes
                )
                scaled = [(v - m) * k for v, m, k in zip(values, mean, factor, strict=True)]
                result = [f.fma(v, weight, bias) for v in scaled]
            else:
                result = [v * k * weight for v, k in zip(values, factor, strict=True)]
            if floats:
                target = frame.buffer("output", space)
                panel.store(f, f.offset(target, place * panel.row_bytes), result)
            if octets:
                target = frame.buffer("output_bytes", space)
                quantize_row(frame, result, f.offset(target, place * panel.width))
    return f


def _combined(frame: Frame, number: Value, centred: bool) -> tuple[list[Value], list[Value]]:
    """Mean of each token of a panel (zero if not `centred`), and what its channels are times by."""
    f, panel = frame.f, frame.panel
    rows, zero = frame.word("rows"), f.const(panel.floats, 0)
    sums = frame.buffer("sums", frame.word("space"))
    count = _splat(frame, rows)
    begin = f.offset(sums, number * (CHUNKS * 2 * panel.row_bytes))
    mean = [zero] * panel.vectors
    if centred:
        slots = [f.var(zero) for _ in mean]
        for size, place in _chunks(frame, begin):
            for slot, value in zip(slots, panel.load(f, place), strict=True):
                slot.set(f.fma(size, value, slot.get()))
        mean = [slot.get() / count for slot in slots]
    slots = [f.var(zero) for _ in mean]
    for size, place in _chunks(frame, begin):
        squares = panel.load(f, f.offset(place, panel.row_bytes))
        means = panel.load(f, place) if centred else mean
        for slot, square, value, centre in zip(slots, squares, means, mean, strict=True):
            slot.set(slot.get() + square)
            if centred:
                away = value - centre
                slot.set(f.fma(size * away, away, slot.get()))
    epsilon = f.splat(frame.number("epsilon"), panel.lanes)
    root = f"llvm.sqrt.v{panel.lanes}f32"
    one = f.const(panel.floats, 1.0)
    return mean, [
        one / f.intrinsic(root, panel.floats, slot.get() / count + epsilon) for slot in slots
    ]


def _chunks(frame: Frame, begin: Value) -> Iterator[tuple[Value, Value]]:
    """Loop over the chunks of a panel: how many channels, and where its sums lie."""
    f, rows = frame.f, frame.word("rows")
    for chunk in f.loop(0, CHUNKS):
        size = rows * (chunk + 1) // CHUNKS - rows * chunk // CHUNKS
        yield _splat(frame, size), f.offset(begin, chunk * (2 * frame.panel.row_bytes))


def _splat(frame: Frame, count: Value) -> Value:
    """A count as a vector of floats."""
    return frame.f.splat(frame.f.convert("uitofp", count, "float"), frame.panel.lanes)


def _sum(
    frame: Frame,
    source: Value,
    start: Value,
    stop: Value,
    centre: list[Value],
    *,
    square: bool,
) -> list[Value]:
    """Per token, the sum over some rows of what they are away from `centre`, or of its square."""
    f, panel = frame.f, frame.panel
    unroll = max(1, _CHAINS // panel.vectors)
    chains = [[f.var(f.const(panel.floats, 0)) for _ in centre] for _ in range(unroll)]
    whole = start + (stop - start) // unroll * unroll

    def add(row: Value, chain: int) -> None:
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        for slot, value, middle in zip(chains[chain], values, centre, strict=True):
            away = value - middle
            slot.set(f.fma(away, away, slot.get()) if square else slot.get() + away)

    for row in f.loop(start, whole, unroll):
        for chain in range(unroll):
            add(row + chain, chain)
    for row in f.loop(whole, stop):
        add(row, 0)
    totals = [slot.get() for slot in chains[0]]
    for others in chains[1:]:
        totals = [t + slot.get() for t, slot in zip(totals, others, strict=True)]
    return totals
