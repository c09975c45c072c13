"""QuantizedLinears: which linears of a Program work on integers, and on which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from sparsefx.analysis import Analysis

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["QuantizedLinear", "QuantizedLinears"]

_LINEAR = torch.ops.aten.linear.default
_QUANTIZE = torch.ops.sparsefx.quantize.default
_DEQUANTIZE = torch.ops.sparsefx.dequantize.default


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear as quantize-convert leaves it.

    Attributes:
        node: The ``aten.linear`` node.
        input: The node of its input's integers, uint8 [..., in].
        input_scale: Name of the scale of the input, float32 [].
        input_zero_point: Name of the zero point of the input, int32 [].
        weight: Name of the weight, int8 [out, in], symmetric.
        weight_scale: Name of the scale of the weight, float32 [] or [out].
        bias: Name of the bias, float32 [out], if there is one.
        output: The ``quantize`` node of its output, when that is all that uses it.
    """

    node: fx.Node
    input: fx.Node
    input_scale: str
    input_zero_point: str
    weight: str
    weight_scale: str
    bias: str | None
    output: fx.Node | None


class QuantizedLinears(Analysis[tuple[QuantizedLinear, ...]]):
    """The quantized linears of a Program in graph order; float ones are left out."""

    @classmethod
    def compute(cls, program: Program) -> tuple[QuantizedLinear, ...]:
        """Look at every linear."""
        nodes = program.graph.find_nodes(op="call_function", target=_LINEAR)
        return tuple(found for node in nodes if (found := _match(node)) is not None)


def _match(node: fx.Node) -> QuantizedLinear | None:
    value, weight = node.args[:2]
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    left, right = _dequantized(value), _dequantized(weight)
    if left is None or right is None:
        return None
    source, scale, zero_point = left
    integers, weight_scale, _ = right
    if integers.op != "get_attr" or source.op == "get_attr":
        return None
    return QuantizedLinear(
        node,
        source,
        str(scale.target),
        str(zero_point.target),
        str(integers.target),
        str(weight_scale.target),
        str(bias.target) if isinstance(bias, fx.Node) else None,
        _only_quantize(node),
    )


def _dequantized(node: object) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Return integers, scale and zero point behind a dequantize node."""
    if not isinstance(node, fx.Node) or node.target is not _DEQUANTIZE:
        return None
    integers, scale, zero_point = node.args[:3]
    assert isinstance(integers, fx.Node)
    assert isinstance(scale, fx.Node)
    assert isinstance(zero_point, fx.Node)
    return integers, scale, zero_point


def _only_quantize(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is _QUANTIZE else None
