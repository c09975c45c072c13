"""Elementwise functions on fp32 vectors, as polynomials: LLVM's own `exp` becomes 16 libm calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.polynomial import chebyshev

from sparsefx.backends.cpu.codegen.ir import Function, Value, lane_count, vector

__all__ = [
    "ACTIVATIONS",
    "exp",
    "gelu",
    "gelu_tanh",
    "maximum",
    "minimum",
    "quick_gelu",
    "relu",
    "sigmoid",
    "silu",
    "tanh",
]

_GELU_LIMIT = 5.2
_GELU_DEGREE = 12


def maximum(f: Function, a: Value, b: Value) -> Value:
    """The larger of two floats, lane by lane."""
    return f.select(f.compare(a, ">", b), a, b)


def minimum(f: Function, a: Value, b: Value) -> Value:
    """The smaller of two floats, lane by lane."""
    return f.select(f.compare(a, "<", b), a, b)


def polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's rule, lowest coefficient first."""
    total = f.const(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = f.fma(total, x, coefficient)
    return total


def exp(f: Function, x: Value) -> Value:
    """e**x for x <= 88, relative error 2e-7; below -87 it gives about 1e-38.

    2**(n + r) with n integer and |r| <= 1/2: a polynomial of degree 6 in r (Taylor, whose
    remainder is 1.2e-7 there), then n is added to the exponent bits.
    """
    lanes = lane_count(x.type)
    ints = vector(lanes, "i32")
    bounded = minimum(f, maximum(f, x, f.const(x.type, -87.0)), f.const(x.type, 88.0))
    scaled = bounded * math.log2(math.e)
    whole = f.intrinsic(f"llvm.rint.v{lanes}f32", x.type, scaled)
    rest = f.fma(bounded, f.const(x.type, math.log2(math.e)), f.const(x.type, 0.0) - whole)
    power = polynomial(f, rest, [math.log(2) ** n / math.factorial(n) for n in range(7)])
    exponent = f.convert("fptosi", whole, ints) << 23
    return f.convert("bitcast", f.convert("bitcast", power, ints) + exponent, x.type)


@cache
def _gelu_coefficients() -> tuple[float, ...]:
    """Polynomial in t = 2 x^2 / L^2 - 1 for (Phi(x) - 1/2) / x on |x| <= L.

    A least-squares fit at Chebyshev nodes, weighted by x^2 because x^2 times it enters the result:
    the largest error of `gelu` is 1.3e-6, at x = 4.4.
    """
    count = 4000
    t = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    squared = (t + 1) * _GELU_LIMIT**2 / 2
    x = np.sqrt(squared)
    target = np.array([0.5 * math.erf(v / math.sqrt(2)) / v for v in x])
    fitted = chebyshev.chebfit(t, target, _GELU_DEGREE, w=np.maximum(squared, 0.05))
    return tuple(float(c) for c in chebyshev.cheb2poly(fitted))


def gelu(f: Function, x: Value) -> Value:
    """X Phi(x), the exact (erf) form; largest absolute error 1.3e-6 on [-8, 8]."""
    limit = f.const(x.type, _GELU_LIMIT)
    bounded = minimum(f, maximum(f, x, f.const(x.type, -_GELU_LIMIT)), limit)
    t = f.fma(bounded * bounded, f.const(x.type, 2 / _GELU_LIMIT**2), -1.0)
    ratio = polynomial(f, t, _gelu_coefficients())
    return x * f.fma(bounded, ratio, 0.5)


def gelu_tanh(f: Function, x: Value) -> Value:
    """The tanh approximation of GELU: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    scale = 2 * math.sqrt(2 / math.pi)
    inner = x * f.fma(x * x, f.const(x.type, -0.044715 * scale), -scale)
    return x / (exp(f, inner) + 1.0)


def tanh(f: Function, x: Value) -> Value:
    """1 - 2 / (e^(2x) + 1)."""
    two = f.const(x.type, 2.0)
    return f.const(x.type, 1.0) - two / (exp(f, x * 2.0) + 1.0)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + e^-x)."""
    one = f.const(x.type, 1.0)
    return one / (exp(f, f.const(x.type, 0.0) - x) + one)


def silu(f: Function, x: Value) -> Value:
    """X sigmoid(x)."""
    return x / (exp(f, f.const(x.type, 0.0) - x) + 1.0)


def quick_gelu(f: Function, x: Value) -> Value:
    """X sigmoid(1.702 x)."""
    return x / (exp(f, x * -1.702) + 1.0)


def relu(f: Function, x: Value) -> Value:
    """max(x, 0)."""
    return maximum(f, x, f.const(x.type, 0.0))


ACTIVATIONS: dict[str, Callable[[Function, Value], Value]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "sigmoid": sigmoid,
    "silu": silu,
    "tanh": tanh,
}
"""Activations that a linear can apply to its result, by name."""
