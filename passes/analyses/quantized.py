"""Which linears and products of a Program work on integers, and on which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators
from sparsefx.analysis import Analysis

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = [
    "QuantizedLinear",
    "QuantizedLinears",
    "QuantizedOperand",
    "QuantizedProduct",
    "QuantizedProducts",
    "quantized_operand",
]

_LINEAR = torch.ops.aten.linear.default
_QUANTIZE = torch.ops.sparsefx.quantize.default
_DEQUANTIZE = torch.ops.sparsefx.dequantize.default
_PRODUCTS = (torch.ops.aten.matmul.default, torch.ops.aten.bmm.default)

aten = torch.ops.aten

_MOVES = {
    aten._unsafe_view.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.expand.default,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
}
"""What moves values and changes none, so that it does the same to integers."""


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


@dataclass(frozen=True)
class QuantizedOperand:
    """One operand of a product of activations.

    Attributes:
        integers: The node of the integers, uint8 of any shape.
        scale: Name of their scale, float32 [].
        zero_point: Name of their zero point, int32 [].
        moves: What brings them into the product's layout, in order; it changes no value.
    """

    integers: fx.Node
    scale: str
    zero_point: str
    moves: tuple[fx.Node, ...]

    def moved(self, values: dict[fx.Node, Any]) -> Tensor:
        """The integers in the product's layout, from the values of the nodes run so far."""
        found: Tensor = values[self.integers]
        for node in self.moves:
            args = fx.map_arg(node.args[1:], values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, values.__getitem__)
            found = node.target(found, *args, **kwargs)  # type: ignore[operator]  # an ATen operator
        return found


@dataclass(frozen=True)
class QuantizedProduct:
    """A matrix product of two quantized activations, such as attention scores."""

    node: fx.Node
    left: QuantizedOperand
    right: QuantizedOperand


class QuantizedProducts(Analysis[tuple[QuantizedProduct, ...]]):
    """The products of activations whose two operands are integers, in graph order."""

    @classmethod
    def compute(cls, program: Program) -> tuple[QuantizedProduct, ...]:
        """Look at every matmul and bmm."""
        found = []
        for node in program.graph.nodes:
            if node.target not in _PRODUCTS:
                continue
            left, right = (quantized_operand(arg) for arg in node.args[:2])
            if left is not None and right is not None:
                found.append(QuantizedProduct(node, left, right))
        return tuple(found)


def quantized_operand(node: object) -> QuantizedOperand | None:
    """The integers behind a value, looking through moves; None for a float value or a weight."""
    moves: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.target in _MOVES:
        moves.insert(0, node)
        node = node.args[0]
    read = _dequantized(node)
    if read is None or read[0].op == "get_attr" or read[1].op != "get_attr":
        return None  # float, a weight, or rows of a table with a scale each
    integers, scale, zero_point = read
    return QuantizedOperand(integers, str(scale.target), str(zero_point.target), tuple(moves))


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
