"""What integer linears compute, bit for bit: the semantics that every integer target is held to.

With input integers x (uint8, zero point z, scale s_x) and weight integers w (int8, symmetric, scale
s_w, one for the tensor or one for each output channel):

    acc[i, o] = sum_k (x[i, k] - z) * w[o, k]                       exact, int32
              = sum_k x[i, k] * w[o, k]  -  z * sum_k w[o, k]       how hardware does it

and each step from there on rounded to float32, as the graph of quantize-convert says and ONNX
Runtime does it:

    y = float32(acc) * (s_x * s_w) + bias
    y_q = clamp(round_half_even(y / s_y) + z_y, 0, 255)             if the output is quantized again
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulate", "integer_linear", "integer_product"]

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
    """Return the output of a quantized linear in float32.

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
    """Return the product of two quantized activations in float32.

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
