"""Vectors scaled to length 1."""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.frame import open_frame
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.codegen.vmath import maximum
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit"]

FIELDS = ("rows", "input", "output", "least", "space")


def emit(isa: Isa, width: int) -> Function:
    """Each token's channels divided by their Euclidean length, or by `least` if that is more."""
    frame = open_frame(f"unit_{isa.name}_w{width}", Panel(isa, width), FIELDS)
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
