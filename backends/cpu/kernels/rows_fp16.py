"""Linear on fp16 that visits non-zeros one by one: 32 tokens to a vector (AVX512-FP16).

Within a block of 192 channels (see `rows`) products add up in fp16, even and odd non-zeros apart;
the sum of a block is widened and added to an fp32 sum. With 90 % zeros a block has some 20
non-zeros of a row, so the error stays near that of the rounded inputs (11 bits of mantissa). Sums
of a block, weights and activations beyond 65,504 overflow.

Weights: as in `rows`, `weights` fp16[n].
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.kernels.rows import FIELDS, Part, emit_with, scratch_bytes
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"rows_fp16_{isa.name}_w{width}_{epilogue.symbol}"


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for an instruction set with fp16, panel width and epilogue."""
    return emit_with(symbol(isa, width, epilogue), isa, width, epilogue, _products, item=2)


def _products(part: Part, begin: Value, end: Value) -> list[Value]:
    """The sums of one row over the pairs `begin` to `end` of non-zeros."""
    frame, f, panel = part.frame, part.frame.f, part.frame.panel
    lanes = 2 * panel.lanes
    zero = f.const(vector(lanes, "half"), 0)
    sums = [[f.var(zero) for _ in range(2)] for _ in range(2)]
    index, weights = frame.pointer("index"), frame.pointer("weights")
    for pair in f.loop(begin, end):
        for n, totals in enumerate(sums):
            channel = f.convert("zext", f.load("i16", f.offset(index, pair * 4 + 2 * n)), "i64")
            weight = f.splat(f.load("half", f.offset(weights, pair * 4 + 2 * n)), lanes)
            row = f.offset(part.values, channel * (2 * panel.width))
            for total, value in zip(totals, panel.load_short(f, row), strict=True):
                half = f.convert("bitcast", value, zero.type)
                total.set(panel.fma_fp16(f, half, weight, total.get()))
    wide = []
    for even, odd in zip(*sums, strict=True):
        total = even.get() + odd.get()
        for first in (0, panel.lanes):
            part_of = f.shuffle(total, total, range(first, first + panel.lanes))
            wide.append(f.convert("fpext", part_of, panel.floats))
    return wide
