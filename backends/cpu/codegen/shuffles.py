"""Vectors that exchange lanes."""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.ir import Function, Value

__all__ = ["transpose"]


def transpose(f: Function, block: list[Value]) -> list[Value]:
    """Transpose a square of n vectors of n lanes by log2(n) rounds of pairwise exchanges."""
    lanes = len(block)
    result = list(block)
    half = lanes // 2
    while half:
        low = [i if not i & half else lanes + i - half for i in range(lanes)]
        high = [i + half if not i & half else lanes + i for i in range(lanes)]
        for n in range(lanes):
            if n & half:
                continue
            a, b = result[n], result[n + half]
            result[n], result[n + half] = f.shuffle(a, b, low), f.shuffle(a, b, high)
        half //= 2
    return result
