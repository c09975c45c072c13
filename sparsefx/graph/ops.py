"""The few operators that sparsefx adds to ATen, all visible as nodes in the graph.

``sparsefx::quantize`` and ``sparsefx::dequantize`` are the two ops in which quantized graphs are
written. Their meaning is ONNX QuantizeLinear and DequantizeLinear:

    q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
    y = (q - zero_point) * scale

``sparsefx::straight_through`` and ``sparsefx::scored_mask`` are masks whose gradients are not those
of a product. ``sparsefx::draw_masked`` draws the tokens that masked-language modelling hides,
``sparsefx::draw`` one choice for a whole batch.
The ops that imitate quantization in training are in :mod:`sparsefx.graph.fake_quantization`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "MODE",
    "Mode",
    "along",
    "dequantize",
    "draw",
    "draw_masked",
    "dropout_rate",
    "quantize",
    "scored_mask",
    "storage_dtype",
    "straight_through",
]

_DRAWS = torch.Tag.nondeterministic_seeded  # two calls with equal inputs are not one
MODE = "mode"
"""Attribute under which every Program's module holds its :class:`Mode`."""


class Mode(nn.Module):
    """Returns whether the Program trains; every dropout reads it, so train() and eval() work."""

    def forward(self) -> bool:
        """Return ``self.training``."""
        return self.training


def dropout_rate(rate: float, training: bool) -> float:
    """Return the dropout probability to use in this mode (for fused attention)."""
    return rate if training else 0.0


def storage_dtype(qmin: int, qmax: int) -> torch.dtype:
    """Return the integer dtype that holds the range ``qmin..qmax``.

    Raises:
        ValueError: When neither int8, uint8 nor int32 holds it.
    """
    for dtype in (torch.int8, torch.uint8, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= qmin and qmax <= info.max:
            return dtype
    raise ValueError(f"no integer type holds the range {qmin}..{qmax}")


def along(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Shape ``values``, one for each index of ``axis``, so that they broadcast over ``like``."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


@torch.library.custom_op("sparsefx::quantize", mutates_args=())
def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """Quantize ``x``.

    Args:
        x: float tensor of any shape.
        scale: float32, a scalar, or one value for each index of ``axis``.
        zero_point: integer tensor shaped as ``scale``.
        qmin: Smallest integer, e.g. 0 or -128.
        qmax: Largest integer, e.g. 255 or 127.
        axis: Dimension of ``x`` along which ``scale`` varies; None for per-tensor.

    Returns:
        int8, uint8 or int32 tensor shaped as ``x``.
    """
    steps = (x.float() / along(scale, x, axis)).round_()
    steps.add_(along(zero_point, x, axis)).clamp_(qmin, qmax)
    return steps.to(storage_dtype(qmin, qmax))


@quantize.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    return torch.empty_like(x, dtype=storage_dtype(qmin, qmax))


@torch.library.custom_op("sparsefx::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Return ``(q - zero_point) * scale`` as float32; arguments as in :func:`quantize`."""
    shifted = q.float().sub_(along(zero_point, q, axis))
    return shifted.mul_(along(scale, q, axis))


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("sparsefx::draw_masked", mutates_args=(), tags=(_DRAWS,))
def draw_masked(
    tokens: Tensor, probability: float, mask_token: int, vocabulary: int, special: list[int]
) -> Tensor:
    """Draw which tokens a masked language model has to guess, and what it sees instead of them.

    Each token that is not special is chosen with ``probability``. Of those chosen, 80 % become the
    mask token, 10 % a token drawn from the whole vocabulary, and 10 % stay (Devlin et al. 2019,
    appendix A.1). Draws come from PyTorch's generator of the device.

    Args:
        tokens: Token ids, int64 of any shape.
        probability: Share of tokens to choose.
        mask_token: Id of the mask token.
        vocabulary: Number of tokens.
        special: Ids that are never chosen: padding, separators, ...

    Returns:
        int64, shaped as ``tokens``: what to see in place of a chosen token, -1 for all others.
    """
    hidden = torch.rand(tokens.shape, device=tokens.device) < probability
    hidden &= ~torch.isin(tokens, torch.tensor(special, device=tokens.device, dtype=tokens.dtype))
    kind = torch.rand(tokens.shape, device=tokens.device)
    seen = torch.where(kind < 0.8, mask_token, torch.randint_like(tokens, vocabulary))
    seen = torch.where(kind < 0.9, seen, tokens)
    return torch.where(hidden, seen, -1)


@draw_masked.register_fake
def _(
    tokens: Tensor, probability: float, mask_token: int, vocabulary: int, special: list[int]
) -> Tensor:
    return torch.empty_like(tokens)


@torch.library.custom_op("sparsefx::draw", mutates_args=(), tags=(_DRAWS,))
def draw(rate: Tensor, training: bool) -> Tensor:
    """Return True with probability ``rate`` in training, and always True in evaluation.

    Args:
        rate: float32 scalar, 0 to 1.
        training: Whether the Program trains.

    Returns:
        bool scalar; drawn from PyTorch's generator of the device.
    """
    if not training:
        return torch.ones_like(rate, dtype=torch.bool)
    return torch.rand_like(rate) < rate


@draw.register_fake
def _(rate: Tensor, training: bool) -> Tensor:
    return torch.empty_like(rate, dtype=torch.bool)


@torch.library.custom_op("sparsefx::straight_through", mutates_args=())
def straight_through(weight: Tensor, mask: Tensor) -> Tensor:
    """Return ``weight * mask``; the gradient of the product goes to the whole weight.

    Args:
        weight: float tensor.
        mask: 0 or 1, shaped and typed as ``weight``.
    """
    return weight * mask


@straight_through.register_fake
def _(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _to_the_weight(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient, None


straight_through.register_autograd(_to_the_weight)


@torch.library.custom_op("sparsefx::scored_mask", mutates_args=())
def scored_mask(weight: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
    """Return ``weight * mask``, where the mask was chosen by ``scores``.

    With g the gradient of the product, the weight gets ``g * mask`` and the scores ``g * weight``,
    as if they were the mask: the straight-through estimator of movement pruning.

    Args:
        weight: float tensor.
        mask: 0 or 1, shaped and typed as ``weight``.
        scores: Shaped and typed as ``weight``; only their gradient matters here.
    """
    return weight * mask


@scored_mask.register_fake
def _(weight: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _save_factors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _to_weight_and_scores(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
    weight, mask = ctx.saved_tensors
    return gradient * mask, None, gradient * weight


scored_mask.register_autograd(_to_weight_and_scores, setup_context=_save_factors)
