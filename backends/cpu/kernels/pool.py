"""One vector for each sequence: the mean of its tokens; and vectors scaled to length 1."""

from __future__ import annotations

from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.panel import Panel
from sparsefx.backends.cpu.vmath import maximum

__all__ = ["MEAN_FIELDS", "UNIT_FIELDS", "emit_mean", "emit_unit"]

MEAN_FIELDS = ("rows", "input", "output", "width_1")
UNIT_FIELDS = ("rows", "input", "output", "least", "space")


def emit_mean(isa: Isa, width: int) -> Function:
    """The mean of the real tokens of each sequence, in the space with one token per sequence.

    `width_1` is the panel width of that space.
    """
    frame = open_frame(f"mean_{isa.name}_w{width}", Panel(isa, width), MEAN_FIELDS)
    f, rows = frame.f, frame.word("rows")
    source, target = frame.buffer("input"), frame.buffer("output", 1)
    other = frame.word("width_1")
    for unit in frame.units(frame.job("sequence_count") * rows):
        number = unit // rows
        row = unit - number * rows
        sequence = f.offset(frame.job("sequences"), number * 16)
        first, length, slot = (
            f.convert("zext", f.index("i32", sequence, n), "i64") for n in (0, 1, 3)
        )
        panel = slot // other
        place = (panel * rows + row) * other + (slot - panel * other)
        mean = _mean(frame, isa.lanes, source, row, (first, length))
        f.store(mean, f.offset(target, place * 4))
    return f


def _mean(frame: Frame, lanes: int, source: Value, row: Value, span: tuple[Value, Value]) -> Value:
    """The mean of one row over the real tokens among `span` (first, how many)."""
    f, width, rows = frame.f, frame.panel.width, frame.word("rows")
    floats, ints = vector(lanes, "float"), vector(lanes, "i32")
    origin = f.load("ptr", frame.job("tables"))
    zero, one = f.const(floats, 0), f.const(floats, 1.0)
    total, count = f.var(zero), f.var(zero)
    for start in f.loop(0, span[1], lanes):
        token = span[0] + start
        number = token // width
        place = (number * rows + row) * width + (token - number * width)
        value = f.load(floats, f.offset(source, place * 4))
        real = f.compare(f.load(ints, f.offset(origin, token * 4)), ">=", f.const(ints, 0))
        total.set(total.get() + f.select(real, value, zero))
        count.set(count.get() + f.select(real, one, zero))
    name = f"llvm.vector.reduce.fadd.v{lanes}f32"
    start_ = f.const("float", 0)
    summed, counted = (f.intrinsic(name, "float", start_, v.get()) for v in (total, count))
    return summed / counted


def emit_unit(isa: Isa, width: int) -> Function:
    """Each token's channels divided by their Euclidean length, or by `least` if that is more."""
    frame = open_frame(f"unit_{isa.name}_w{width}", Panel(isa, width), UNIT_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    rows = frame.word("rows")
    source, target = frame.buffer("input", space), frame.buffer("output", space)
    least = f.splat(frame.number("least"), panel.lanes)
    one = f.const(panel.floats, 1.0)
    for number in frame.units(frame.job("panels", space)):
        begin = number * rows * panel.row_bytes
        sums = [f.var(f.const(panel.floats, 0)) for _ in range(panel.vectors)]
        for row in f.loop(0, rows):
            place = f.offset(source, begin + row * panel.row_bytes)
            for total, value in zip(sums, panel.load(f, place), strict=True):
                total.set(f.fma(value, value, total.get()))
        root = f"llvm.sqrt.v{panel.lanes}f32"
        lengths = [f.intrinsic(root, panel.floats, total.get()) for total in sums]
        factors = [one / maximum(f, length, least) for length in lengths]
        for row in f.loop(0, rows):
            place = begin + row * panel.row_bytes
            values = panel.load(f, f.offset(source, place))
            scaled = [v * k for v, k in zip(values, factors, strict=True)]
            panel.store(f, f.offset(target, place), scaled)
    return f
