"""The fastest that a core can multiply: products on registers alone, to hold kernels against."""

from __future__ import annotations

from sparsefx.backends.cpu.frame import Frame, open_frame
from sparsefx.backends.cpu.ir import Function, Value
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.panel import Panel

__all__ = ["CHAINS", "FIELDS", "emit"]

CHAINS = 10
"""Sums that do not wait for each other: latency times products per cycle, and some."""

FIELDS = ("rounds", "space")


def emit(isa: Isa, width: int, *, dots: bool) -> Function:
    """`rounds` times CHAINS products of one vector: int8 dot products, or fp32 multiply-adds."""
    kind = "dots" if dots else "fmas"
    frame = open_frame(f"peak_{isa.name}_w{width}_{kind}", Panel(isa, width), FIELDS)
    f, panel = frame.f, frame.panel
    type_ = panel.ints if dots else panel.floats
    source = frame.job("scratch")
    a, b = (f.load(type_, f.offset(source, n * 64)) for n in (0, 1))
    sums = [f.var(f.load(type_, f.offset(source, (n + 2) * 64))) for n in range(CHAINS)]
    for _ in f.loop(0, frame.word("rounds")):
        for total in sums:
            total.set(_product(frame, total.get(), a, b, dots=dots))
    for n, total in enumerate(sums):
        f.store(total.get(), f.offset(source, (n + 2) * 64))
    return f


def _product(frame: Frame, total: Value, a: Value, b: Value, *, dots: bool) -> Value:
    return frame.panel.dot(frame.f, total, a, b) if dots else frame.f.fma(a, b, total)
