"""Rotary positions: each channel of a head times a factor, plus another channel times another.

    y[c] = x[c] * own[c] + x[partner[c]] * other[c]

The factors are rows of a buffer, one of `own` and one of `other` for each channel: an embedding of
the positions writes them, once for all heads and layers that turn alike.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.frame import open_frame
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit"]

FIELDS = (
    *("heads", "head_size", "input", "input_rows", "first"),
    *("factors", "partner", "output"),
)
"""`first` is the row of the first head in the input; `partner` points at int64 [head_size]."""


def emit(isa: Isa, width: int) -> Function:
    """The kernel for one instruction set and panel width."""
    frame = open_frame(f"rotate_{isa.name}_w{width}", Panel(isa, width), FIELDS)
    f, panel = frame.f, frame.panel
    heads, size = frame.word("heads"), frame.word("head_size")
    source, target, factors = (frame.buffer(n) for n in ("input", "output", "factors"))
    for number, channel in frame.each_unit(size):
        partner = f.load("i64", f.offset(frame.pointer("partner"), channel * 8))
        place = (number * (size * 2) + channel) * panel.row_bytes
        own = panel.load(f, f.offset(factors, place))
        other = panel.load(f, f.offset(factors, place + size * panel.row_bytes))
        begin = number * frame.word("input_rows") + frame.word("first")
        for head in f.loop(0, heads):
            rows = [begin + head * size + c for c in (channel, partner)]
            x, y = (panel.load(f, f.offset(source, row * panel.row_bytes)) for row in rows)
            parts = zip(x, y, own, other, strict=True)
            turned = [f.fma(a, b, c * d) for a, c, b, d in parts]
            row = number * (heads * size) + head * size + channel
            panel.store(f, f.offset(target, row * panel.row_bytes), turned)
    return f
