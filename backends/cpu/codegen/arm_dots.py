"""Dot products of four bytes on Arm, as instructions or as a model of them in ordinary code.

The model stands in where there is no Arm CPU, for tests. It follows the operations of SDOT (vector)
and USDOT (vector) in the Arm Architecture Reference Manual: each of the four int32 gets the sum of
the products of its four bytes, modulo 2**32.
"""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["arm_dot"]

_BYTES, _PRODUCTS, _SUMS = vector(16, "i8"), vector(16, "i32"), vector(4, "i32")


def arm_dot(f: Function, isa: Isa, total: Value, activations: Value, weights: Value) -> Value:
    """`total + sum of 4 (code x int8)`, four int32; codes are int8 for `sdot`, else uint8."""
    left, right = (f.convert("bitcast", value, _BYTES) for value in (activations, weights))
    if not isa.is_model:
        name = f"llvm.aarch64.neon.{isa.dots}.v4i32.v16i8"
        return f.intrinsic(name, _SUMS, total, left, right)
    wide = f.convert("sext" if isa.dots == "sdot" else "zext", left, _PRODUCTS)
    products = wide * f.convert("sext", right, _PRODUCTS)
    for byte in range(4):
        total = total + f.shuffle(products, products, range(byte, 16, 4))
    return total
