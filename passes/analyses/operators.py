"""Kinds of ATen operators: the one place that says which of them only move values, cast or copy."""

from __future__ import annotations

from typing import Any

import torch

__all__ = [
    "CASTS",
    "CONVOLUTIONS",
    "COPIES",
    "DROPOUTS",
    "ELEMENTWISE",
    "PARTS",
    "REORDERS",
    "RESHAPES",
    "SOFTMAXES",
]

aten = torch.ops.aten

Operators = frozenset[Any]

COPIES: Operators = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
    }
)
"""The first input with the same values and shape."""
CONVOLUTIONS: Operators = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
    }
)
"""Of the second input, [outputs, inputs / groups, ...], over the first."""
CASTS: Operators = frozenset(
    {
        aten.to.device,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.other,
        aten.type_as.default,
    }
)
"""The first input as another dtype or on another device."""
DROPOUTS: Operators = frozenset({aten.dropout.default, aten.feature_dropout.default})
"""The first input; in training with some values hidden."""
RESHAPES: Operators = frozenset(
    {
        aten._unsafe_view.default,
        aten.expand.default,
        aten.flatten.using_ints,
        aten.reshape.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
"""The values of the first input in the same order, in another shape."""
REORDERS: Operators = frozenset({aten.permute.default, aten.t.default, aten.transpose.int})
"""The first input with its dimensions in another order."""
PARTS: Operators = frozenset(
    {
        aten.chunk.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
    }
)
"""A part of the first input, or all its parts."""
ELEMENTWISE: Operators = frozenset(
    {
        aten.abs.default,
        aten.add.Scalar,
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.div.Scalar,
        aten.div.Tensor,
        aten.elu.default,
        aten.erf.default,
        aten.exp.default,
        aten.gelu.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.log1p.default,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.mish.default,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.neg.default,
        aten.pow.Tensor_Scalar,
        aten.pow.Tensor_Tensor,
        aten.relu.default,
        aten.relu_.default,
        aten.rsub.Scalar,
        aten.sigmoid.default,
        aten.silu.default,
        aten.softplus.default,
        aten.sqrt.default,
        aten.sub.Scalar,
        aten.sub.Tensor,
        aten.tanh.default,
        aten.where.self,
    }
)
"""An element of the result depends on the elements at its own place alone, after broadcasting."""
SOFTMAXES: Operators = frozenset(
    {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}
)
"""Softmax along a dimension."""
