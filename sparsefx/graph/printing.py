"""The text of nodes and of figures: deterministic, returned and never printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.graph.callables import callable_name
from sparsefx.inputs.signature import format_dtype, format_type

if TYPE_CHECKING:
    from sparsefx.graph.shapes import ShapeFact

__all__ = ["format_facts", "format_node", "format_ratio", "node_and_op"]


def format_ratio(ratio: float) -> str:
    """Return a ratio of sizes as text; against nothing there is none.

    >>> format_ratio(17.84), format_ratio(float("inf"))
    ('17.8x', 'none')
    """
    return f"{ratio:.1f}x" if math.isfinite(ratio) else "none"


def format_node(node: fx.Node) -> str:
    """Return one node as text, e.g. ``%x = aten.add.Tensor(%a, 1)``."""
    if node.op == "output":
        return f"return {_arg(node.args[0])}"
    if node.op == "get_attr":
        return f"%{node.name} = tensor @{node.target}"
    name = node.target if node.op == "call_module" else callable_name(node.target)
    name = str(name).removesuffix(".default")
    args = [_arg(arg) for arg in node.args]
    args += [f"{key}={_arg(value)}" for key, value in node.kwargs.items()]
    return f"%{node.name} = {name}({', '.join(args)})"


def node_and_op(node: fx.Node) -> str:
    """Return what a message calls a node, e.g. ``%x (aten.add.Tensor)``."""
    return f"%{node.name} ({str(node.target).removesuffix('.default')})"


def format_facts(node: fx.Node, value: ShapeFact | None, tensor: Tensor | None) -> str:
    """Return what is known of a node, e.g. ``float32[batch, 4], in encoder, by simplify``.

    Args:
        node: Carries the pass that made it and the module it came from.
        value: Dtype and dimensions, if it gives a tensor.
        tensor: What it reads, if it reads one.
    """
    found = []
    if value is not None:
        found.append(format_type(value.dtype, value.dims))
    if tensor is not None and tensor.dim() >= 2 and tensor.numel():
        zeros = 1.0 - int(torch.count_nonzero(tensor)) / tensor.numel()
        found.append(f"{zeros:.1%} zero")
    if module := node.meta.get("module"):
        found.append(f"in {module}")
    if author := node.meta.get("by"):
        found.append(f"by {author}")
    return ", ".join(found)


def _arg(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_arg(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_arg(item)}' for key, item in value.items())}}}"
    if isinstance(value, torch.dtype):
        return format_dtype(value)
    if isinstance(value, slice):
        return f"{_arg(value.start)}:{_arg(value.stop)}:{_arg(value.step)}"
    return str(value)
