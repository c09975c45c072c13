"""Linear on bf16 that visits non-zeros two by two.

`vdpbf16ps` adds two products of bf16 to each fp32 sum. As `quads` does with bytes, the activations
of any two non-zeros of a row are interleaved on the fly (4 unpacks for 4 products of 16 tokens):

    row a  a0 a1 a2 ...      vpunpck     a0 b0 | a1 b1 | ...  (4 vectors)
    row b  b0 b1 b2 ...   ------------>       *  broadcast (wa wb)      vdpbf16ps into 4 sums

Weights and activations have 8 bits of mantissa, sums 24. Where `vdpbf16ps` is as fast as an fp32
multiply-add (Zen 4), a pair costs 4 products and 4 unpacks, which two non-zeros in fp32 cost 8
multiply-adds and twice as many bytes of activations. Blocks and order of rows are those of `rows`.

Weights: as in `rows`, `weights` uint16[n] (bf16).
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.kernels.rows import FIELDS, Part, emit_with, scratch_bytes
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"rows_bf16_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for an instruction set with products of bf16, panel width and epilogue."""
    return emit_with(symbol(isa, width, epilogue), isa, width, epilogue, _products, item=2)


def _products(part: Part, begin: Value, end: Value) -> list[Value]:
    """The sums of one row over the pairs `begin` to `end` of non-zeros."""
    frame, f, panel = part.frame, part.frame.f, part.frame.panel
    zero = f.const(panel.floats, 0)
    sums = [f.var(zero) for _ in range(panel.vectors)]
    index, weights = frame.pointer("index"), frame.pointer("weights")
    for pair in f.loop(begin, end):
        places = [f.offset(index, pair * 4 + 2 * n) for n in range(2)]
        channels = [f.convert("zext", f.load("i16", place), "i64") for place in places]
        rows = [f.offset(part.values, channel * (2 * panel.width)) for channel in channels]
        two = f.splat(f.load("i32", f.offset(weights, pair * 4)), panel.lanes)
        mixed = panel.pairs(f, *(panel.load_short(f, row) for row in rows))
        for total, value in zip(sums, mixed, strict=True):
            total.set(panel.dot_bf16(f, total.get(), value, two))
    return [total.get() for total in sums]
