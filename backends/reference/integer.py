"""What integer linears compute, bit for bit: the semantics that every integer target is held to.

With input integers x (uint8, zero point z, scale s_x) and weight integers w (int8, symmetric, scale
s_w, one for the tensor or one for each output channel):

    acc[i, o] = sum_k (x[i, k] - z) * w[o, k]                       exact, int32
              = sum_k x[i, k] * w[o, k]  -  z * sum_k w[o, k]       how hardware does it

There are two ways on from the accumulator, and a target says which one it takes:

    float      y = float32(acc) * (s_x * s_w) + bias                each step rounded to float32
               y_q = clamp(round_half_even(y / s_y) + z_y, 0, 255)  if the output is quantized again
    integer    acc' = acc + round_half_even(bias / (s_x * s_w))     the bias as int32
               y_q = clamp(((acc' * a + 2^(n-1)) >> n) + z_y, 0, 255),  a * 2^-n ~ s_x * s_w / s_y

``float`` is what the graph of quantize-convert says, and what ONNX Runtime does; ``integer`` is the
paper's (Prune Once for All, simulation of the integer path), with a of 16 bits, and what hardware
without floating point does. The two differ by at most one step of y_q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.ops import quantize

__all__ = [
    "accumulate",
    "fixed_point",
    "integer_linear",
    "integer_product",
    "quantize_bias",
    "requantize",
    "requantize_fixed",
]

_INT32 = torch.iinfo(torch.int32)


def accumulate(x: Tensor, zero_point: Tensor | int, weight: Tensor) -> Tensor:
    """Return ``sum_k (x[..., k] - zero_point) * weight[o, k]``, exact.

    Args:
        x: uint8 (or int8) [..., in].
        zero_point: Of ``x``; an integer or int32 [].
        weight: int8 [out, in].

    Returns:
        int32 [..., out].

    Raises:
        OverflowError: When a sum leaves the range of int32 (not below 65,000 inputs).
    """
    # Products are below 2^17 and float64 holds integers below 2^53: exact for any real layer.
    shifted = x.to(torch.float64) - torch.as_tensor(zero_point, device=x.device).to(torch.float64)
    return _checked(shifted @ weight.to(torch.float64).T, x.shape[-1])


def _checked(sums: Tensor, count: int) -> Tensor:
    if sums.numel() and not _INT32.min <= float(sums.min()) <= float(sums.max()) <= _INT32.max:
        raise OverflowError(f"a sum over {count} products leaves the range of int32")
    return sums.to(torch.int32)


def integer_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    scale: Tensor,
    zero_point: Tensor,
    weight_scale: Tensor,
) -> Tensor:
    """Return the output of a quantized linear in float32, by the ``float`` way above.

    Args:
        x: uint8 [..., in].
        weight: int8 [out, in].
        bias: float32 [out], or None.
        scale: Of ``x``; float32 [].
        zero_point: Of ``x``; int32 [].
        weight_scale: float32 [] or [out].

    Returns:
        float32 [..., out].
    """
    y = accumulate(x, zero_point, weight).float() * (scale * weight_scale)
    return y if bias is None else y + bias


def integer_product(
    left: Tensor,
    right: Tensor,
    *,
    scales: tuple[Tensor, Tensor],
    zero_points: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the product of two quantized activations in float32, by the ``float`` way above.

        acc[i, j] = sum_k (left[i, k] - z_left) * (right[k, j] - z_right)         exact, int32
        y = float32(acc) * (s_left * s_right)

    Args:
        left: uint8 [..., rows, k].
        right: uint8 [..., k, columns].
        scales: float32 [], of the two.
        zero_points: int32 [], of the two.

    Returns:
        float32 [..., rows, columns].

    Raises:
        OverflowError: When a sum leaves the range of int32 (not below 33,000 summands).
    """
    shifted = [x.double() - z.double() for x, z in zip((left, right), zero_points, strict=True)]
    return _checked(shifted[0] @ shifted[1], left.shape[-1]).float() * (scales[0] * scales[1])


def requantize(y: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``y`` as uint8: the ``quantize`` of the graph."""
    found: Tensor = quantize(y, scale, zero_point, 0, 255)
    return found


def quantize_bias(bias: Tensor, scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Return the bias as int32 [out] with the scale ``scale * weight_scale``, saturating.

    Computed in float64, so that it is the same on every machine.
    """
    steps = torch.round(bias.double() / (scale.double() * weight_scale.double()))
    return steps.clamp(_INT32.min, _INT32.max).to(torch.int32)


def fixed_point(multiplier: Tensor, bits: int = 16) -> tuple[Tensor, Tensor]:
    """Return integers a and n with ``a * 2^-n`` nearest to ``multiplier``; a has ``bits`` bits.

    Args:
        multiplier: s_x * s_w / s_y, positive, of any shape.
        bits: Width of a, unsigned; 16 in the paper.

    Returns:
        a (int64, in 2^(bits-1) .. 2^bits - 1) and n (int64).

    >>> a, n = fixed_point(torch.tensor(0.0123))
    >>> int(a), int(n), round(int(a) * 2.0 ** -int(n), 7)
    (51590, 22, 0.0123)
    """
    fraction, exponent = torch.frexp(multiplier.double())
    a = torch.round(fraction * 2**bits).to(torch.int64)
    n = bits - exponent.to(torch.int64)
    carried = a == 2**bits
    return torch.where(carried, a // 2, a), torch.where(carried, n - 1, n)


def requantize_fixed(
    acc: Tensor, a: Tensor, n: Tensor, zero_point: Tensor | int, qmin: int = 0, qmax: int = 255
) -> Tensor:
    """Return ``clamp(((acc * a + 2^(n-1)) >> n) + zero_point)`` as uint8: integers alone.

    Args:
        acc: int32 [..., out], the bias included.
        a: From :func:`fixed_point`; int64 [] or [out].
        n: From :func:`fixed_point`; at least 1.
        zero_point: Of the output.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    product = acc.to(torch.int64) * a
    rounded = (product + (torch.ones_like(n) << (n - 1))) >> n
    return (rounded + torch.as_tensor(zero_point)).clamp(qmin, qmax).to(torch.uint8)
