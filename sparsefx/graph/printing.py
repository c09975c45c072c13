"""The text of a Program and of figures about it: deterministic, returned and never printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from sparsefx.graph.callables import callable_name
from sparsefx.inputs.signature import format_dtype, format_type

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["dump", "format_node", "format_ratio"]


def dump(program: Program, *, facts: bool = False) -> str:
    """Return the graph as text, one node a line.

    Args:
        program: The Program to print.
        facts: Also print shapes, dtypes, the share of zeros of each tensor, the pass that made a
            node and the module it came from.
    """
    inputs = ", ".join(str(spec) for spec in program.signature.inputs)
    lines = [f"program({inputs}) {{"]
    for node in program.graph.nodes:
        if node.op == "placeholder":
            continue
        line = f"  {format_node(node)}"
        lines.append(f"{line}  # {_facts(program, node)}" if facts else line)
    lines.append("}")
    if program.properties:
        lines.append(f"properties: {', '.join(sorted(str(p) for p in program.properties))}")
    lines.extend(f"active: {item}" for item in program.active)
    return "\n".join(lines) + "\n"


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


def _facts(program: Program, node: fx.Node) -> str:
    found = []
    value = program.shape_of(node)
    if value is not None:
        found.append(format_type(value.dtype, value.dims))
    if node.op == "get_attr":
        tensor = program.tensor(str(node.target))
        if tensor.dim() >= 2 and tensor.numel():
            zeros = 1.0 - int(torch.count_nonzero(tensor)) / tensor.numel()
            found.append(f"{zeros:.1%} zero")
    if module := node.meta.get("module"):
        found.append(f"in {module}")
    if author := node.meta.get("by"):
        found.append(f"by {author}")
    return ", ".join(found)
