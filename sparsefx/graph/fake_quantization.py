"""The ops that imitate quantization in training: observe, fake_quantize, fake_quantize_weight.

Why not ``aten.fused_moving_avg_obs_fake_quant``: it refuses bfloat16 (so it fails under autocast),
its observer does not follow train() and eval() but a tensor of its own, it hides the range in four
buffers that it writes behind the graph's back, and on a CPU it takes 8 to 24 times longer than the
ops below (4096 x 384 values, one thread: 26 ms against 1.4 ms).

All three read ``step``, an int64 scalar buffer that counts optimizer steps; before ``begin`` they
leave values as they are. The arithmetic is that of ``sparsefx::quantize`` and
``sparsefx::dequantize``, operation for operation, so that a converted graph gives *equal* outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsefx.graph.ops import along

__all__ = [
    "affine_parameters",
    "fake_quantize",
    "fake_quantize_weight",
    "observe",
    "symmetric_scale",
]


def affine_parameters(
    minimum: Tensor, maximum: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) for the range ``minimum..maximum``.

    The range is widened to hold 0, so that padding and zeros are exact:

        lo = min(minimum, 0), hi = max(maximum, 0)
        scale = max((hi - lo) / (qmax - qmin), 2^-23)
        zero_point = clamp(qmin - round_half_even(lo / scale), qmin, qmax)

    This is the formula of ``MovingAverageMinMaxObserver`` (affine), which Prune Once for All uses.

    Args:
        minimum: float32, of any shape.
        maximum: float32, shaped as ``minimum``.
        qmin: Smallest integer, 0 for uint8.
        qmax: Largest integer, 255 for uint8.
    """
    low = minimum.clamp(max=0.0)
    high = maximum.clamp(min=0.0)
    scale = ((high - low) / (qmax - qmin)).clamp(min=torch.finfo(torch.float32).eps)
    zero_point = (qmin - torch.round(low / scale)).clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32)


def symmetric_scale(weight: Tensor, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Return the scale (float32) of a symmetric quantizer: max|w| / ((qmax - qmin) / 2).

    The zero point is 0 by definition. For int8 -128..127 the divisor is 127.5, as in Prune Once for
    All; the largest weight, if positive, then rounds to 128 and is cut to 127 (half a step). A
    tensor, or channel, without a non-zero value gets scale 1.

    Args:
        weight: float, [out, in] for a linear.
        qmin: Smallest integer.
        qmax: Largest integer.
        axis: None for one scale (shape []), else one for each index of this dimension.
    """
    size = weight.detach().float().abs()
    if axis is None:
        largest = size.amax()
    else:
        largest = size.amax(dim=[d for d in range(weight.dim()) if d != axis % weight.dim()])
    scale = largest / ((qmax - qmin) / 2)
    # A scale that underflows (max|w| below 1e-36) would divide by zero.
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)


@torch.library.custom_op("sparsefx::observe", mutates_args=("minimum", "maximum"))
def observe(
    x: Tensor,
    minimum: Tensor,
    maximum: Tensor,
    step: Tensor,
    average: float,
    begin: int,
    end: int | None,
    training: bool,
) -> None:
    """Move the range ``minimum..maximum`` towards that of ``x``; in training mode only.

    The first values seen set the range; later ones move it by an exponential average:

        minimum += average * (min(x) - minimum)        (and the same for the maximum)

    Args:
        x: float tensor of any shape.
        minimum: float32 [], +inf before the first values; written.
        maximum: float32 [], -inf before the first values; written.
        step: int64 [], optimizer steps so far.
        average: Averaging constant; 0 keeps the extremes of all that was ever seen.
        begin: First step at which it observes.
        end: First step at which it no longer observes; None for never.
        training: Whether the Program trains; the graph passes its node ``mode``.
    """
    if not training or x.numel() == 0:
        return
    low, high = (value.float() for value in torch.aminmax(x.detach()))
    if average == 0.0:
        low, high = torch.minimum(low, minimum), torch.maximum(high, maximum)
    else:
        fresh = minimum > maximum
        low = torch.where(fresh, low, minimum + average * (low - minimum))
        high = torch.where(fresh, high, maximum + average * (high - maximum))
    if begin > 0 or end is not None:
        active = step >= begin if end is None else (step >= begin) & (step < end)
        low, high = torch.where(active, low, minimum), torch.where(active, high, maximum)
    minimum.copy_(low)
    maximum.copy_(high)


@observe.register_fake
def _(*given: object) -> None:
    return None


def _acts(minimum: Tensor, maximum: Tensor, step: Tensor, begin: int) -> Tensor:
    """Return whether a fake quantizer acts: it has begun, and its observer has seen values."""
    return (minimum <= maximum) & (step >= begin)


@torch.library.custom_op("sparsefx::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor, minimum: Tensor, maximum: Tensor, step: Tensor, begin: int, qmin: int, qmax: int
) -> Tensor:
    """Round ``x`` to what ``dequantize(quantize(x))`` gives, for the range ``minimum..maximum``.

    Leaves ``x`` as it is before ``begin``, and while the observer has seen nothing. The gradient is
    the straight-through estimate: 1 where ``x`` is inside the range (to half a step), 0 outside.

    Args:
        x: float tensor of any shape and type; computed in float32.
        minimum: float32 [], from :func:`observe`.
        maximum: float32 [], from :func:`observe`.
        step: int64 [], optimizer steps so far.
        begin: First step at which it acts.
        qmin: Smallest integer.
        qmax: Largest integer.

    Returns:
        A tensor of the shape and type of ``x``.
    """
    acts = _acts(minimum, maximum, step, begin)
    # Reading one flag is free on a CPU and stalls an accelerator, which selects instead.
    if x.device.type == "cpu" and not acts:
        return x.clone()
    scale, zero_point = affine_parameters(minimum, maximum, qmin, qmax)
    steps = (x.float() / scale).round_().add_(zero_point).clamp_(qmin, qmax)
    rounded = steps.sub_(zero_point).mul_(scale).to(x.dtype)
    return rounded if x.device.type == "cpu" else torch.where(acts, rounded, x)


@fake_quantize.register_fake
def _(
    x: Tensor, minimum: Tensor, maximum: Tensor, step: Tensor, begin: int, qmin: int, qmax: int
) -> Tensor:
    return torch.empty_like(x)


def _save_bounds(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, minimum, maximum, step, begin, qmin, qmax = inputs
    scale, zero_point = affine_parameters(minimum, maximum, qmin, qmax)
    acts = _acts(minimum, maximum, step, begin)
    infinity = torch.full_like(scale, float("inf"))
    low = torch.where(acts, (qmin - 0.5 - zero_point) * scale, -infinity)
    high = torch.where(acts, (qmax + 0.5 - zero_point) * scale, infinity)
    ctx.save_for_backward(x, low, high)


def _pass_inside(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, low, high = ctx.saved_tensors
    inside = (x >= low) & (x <= high)
    return gradient * inside, None, None, None, None, None, None


fake_quantize.register_autograd(_pass_inside, setup_context=_save_bounds)


@torch.library.custom_op("sparsefx::fake_quantize_weight", mutates_args=())
def fake_quantize_weight(
    weight: Tensor, step: Tensor, begin: int, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """Round ``weight`` to what its symmetric quantizer keeps of it; zero stays exactly zero.

    The scale is that of the weight as it is now (:func:`symmetric_scale`), in training and in
    evaluation: a weight needs no observer, and so its scale is never a step behind. As nothing is
    out of range by more than half a step, the gradient passes through everywhere.

    Args:
        weight: float tensor, [out, in] for a linear.
        step: int64 [], optimizer steps so far.
        begin: First step at which it acts.
        qmin: Smallest integer.
        qmax: Largest integer.
        axis: None for one scale, else the dimension along which scales vary.

    Returns:
        A tensor of the shape and type of ``weight``.
    """
    acts = step >= begin
    if weight.device.type == "cpu" and not acts:
        return weight.clone()
    scale = along(symmetric_scale(weight, qmin, qmax, axis), weight, axis)
    rounded = (weight.float() / scale).round_().clamp_(qmin, qmax).mul_(scale).to(weight.dtype)
    return rounded if weight.device.type == "cpu" else torch.where(acts, rounded, weight)


@fake_quantize_weight.register_fake
def _(
    weight: Tensor, step: Tensor, begin: int, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    return torch.empty_like(weight)


def _pass_all(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, None, None, None, None, None


fake_quantize_weight.register_autograd(_pass_all)
