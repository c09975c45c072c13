"""Which unit of an accelerator runs which operator of a graph."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import fx

__all__ = ["LOOKED_UP", "Unit", "op_name", "reads_table", "units_of", "vector_kind"]

Unit = Literal["matrix", "vector", "free", "host"]
"""matrix: the engine. vector: the vector unit. free: no work at run time. host: not on the chip."""

_MATRIX: Final = {"aten.linear", "aten.matmul", "aten.bmm", "aten.mm"}

_VECTOR: Final = {
    "aten.add": "add", "aten.sub": "add", "aten.rsub": "add", "aten.mul": "mul", "aten.div": "mul",
    "aten.neg": "mul", "aten.gelu": "gelu", "aten.tanh": "tanh", "aten.sigmoid": "sigmoid",
    "aten.silu": "silu", "aten.relu": "elementwise", "aten.exp": "exp", "aten.pow": "mul",
    "aten.sqrt": "sqrt", "aten.rsqrt": "rsqrt", "aten.mean": "add", "aten.sum": "add",
    "aten.softmax": "softmax", "aten._softmax": "softmax", "aten._safe_softmax": "softmax",
    "aten.layer_norm": "layer-norm", "aten.native_layer_norm": "layer-norm",
    "aten.embedding": "embedding", "aten.where": "elementwise", "aten.masked_fill": "elementwise",
    "aten.cat": "elementwise", "aten.clamp": "elementwise", "aten.index": "embedding",
    "aten.gather": "embedding", "sparsefx.quantize": "quantize", "aten.log": "log",
    "aten.cos": "cos", "aten.sin": "sin", "aten.erf": "erf", "aten.abs": "elementwise",
    "aten.ceil": "elementwise", "aten.floor": "elementwise", "aten.sign": "elementwise",
    "aten.maximum": "elementwise", "aten.minimum": "elementwise", "aten.stack": "elementwise",
}  # fmt: skip

LOOKED_UP: Final = {"cos", "erf", "exp", "log", "rsqrt", "sigmoid", "silu", "sin", "sqrt"}
"""Functions that a table gives, as it gives `tanh`: its cost, where a machine has none for them."""

_FREE: Final = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.transpose", "aten.permute", "aten.t",
    "aten.contiguous", "aten.expand", "aten.slice", "aten.select", "aten.unsqueeze",
    "aten.squeeze", "aten.to", "aten._to_copy", "aten.clone", "aten.dropout", "aten.flatten",
    "aten.detach", "aten.alias", "aten.split", "aten.chunk", "aten.unbind", "aten.expand_as",
    "sparsefx.dequantize", "sparsefx.dropout_rate", "_operator.getitem", "aten.type_as",
    "aten.repeat", "aten.unflatten", "aten.movedim", "aten.moveaxis", "aten.swapaxes",
    "aten.swapdims", "aten.narrow", "aten.unsafe_split", "aten.split_with_sizes",
    "aten.unsafe_split_with_sizes", "aten.unsafe_chunk", "aten.tensor_split", "aten.view_as",
    "aten.reshape_as", "aten.broadcast_to", "aten.mT", "aten.numpy_T", "aten.ravel",
}  # fmt: skip


def op_name(node: fx.Node) -> str:
    """The operator without its overload, such as `aten.add`; `aten.add_` is the same to us."""
    if node.op != "call_function":
        return node.op
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).rpartition(".")[0].replace("::", ".").removesuffix("_")
    target = node.target
    if callable(target):
        module = getattr(target, "__module__", "")
        name = getattr(target, "__name__", str(target))
        return f"sparsefx.{name}" if module.startswith("sparsefx") else f"{module}.{name}"
    return str(target)


def reads_table(node: fx.Node) -> bool:
    """Whether a node takes rows of a table of weights, floats or their integers."""
    source = node.args[0] if node.args else None
    if vector_kind(node) != "embedding" or not isinstance(source, fx.Node):
        return False
    value = node.meta.get("val")
    if source.op != "get_attr" or not isinstance(value, torch.Tensor) or value.ndim < 2:
        return False
    return value.dtype not in (torch.int64, torch.bool)


def vector_kind(node: fx.Node) -> str:
    """The vector unit's name for a node, as in an architecture's `costs`."""
    return _VECTOR.get(op_name(node), "elementwise")


def units_of(graph: fx.Graph) -> dict[fx.Node, Unit]:
    """Choose the unit of every node that computes.

    Whatever makes integers or truth values (positions, attention masks) is prepared with the
    inputs, before the run, and free here; quantized values are not. What no input enters is a
    constant and free too.
    """
    found: dict[fx.Node, Unit] = {}
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in computed for n in node.all_input_nodes):
            computed.add(node)
        if node.op not in ("call_function", "call_module", "call_method"):
            continue
        found[node] = _unit(node) if node in computed else "free"
    return found


def _unit(node: fx.Node) -> Unit:
    name = op_name(node)
    if name in _MATRIX:
        return "matrix"
    if name == "sparsefx.quantize" or reads_table(node):
        return "vector"
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if name in _FREE or not any(t.is_floating_point() or t.is_complex() for t in tensors):
        return "free"
    return "vector" if name in _VECTOR else "host"
