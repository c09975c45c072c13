"""Names for the functions that graph nodes call, in both directions.

A saved Program names its functions; loading looks the names up in a closed set (ATen and sparsefx
operators, and the arithmetic that symbolic sizes need), so a file can never name code to run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

import sparsefx.graph.fake_quantization  # noqa: F401  # a graph may name its operators
from sparsefx.errors import ArtifactError
from sparsefx.graph import ops

__all__ = ["callable_name", "resolve_callable"]

_NAMESPACES = ("aten", "sparsefx")
_REACHES_FILES = "from_file"  # the one ATen operator that opens a file by name
_OPERATORS = (
    "add",
    "and_",
    "eq",
    "floordiv",
    "ge",
    "getitem",
    "gt",
    "le",
    "lt",
    "mod",
    "mul",
    "ne",
    "neg",
    "not_",
    "or_",
    "pos",
    "pow",
    "sub",
    "truediv",
)
_SYMBOLIC = ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
_PLAIN: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC},
    "sparsefx.dropout_rate": ops.dropout_rate,
}
_NAMES = {function: name for name, function in _PLAIN.items()}


def callable_name(target: object, *, who: str = "graph") -> str:
    """Return the name of a node's function, e.g. ``aten.linear.default``; ``who`` calls it.

    Raises:
        ArtifactError: When the function is outside the closed set.
    """
    if isinstance(target, OpOverload) and _is_known(target):
        return str(target)
    name = _NAMES.get(target) if callable(target) else None
    if name is None:
        raise ArtifactError(
            f"the {who} calls {target!r}, which a Program cannot hold",
            who=who,
            hint=_overloads(target)
            or "a Program calls ATen and sparsefx operators and arithmetic on sizes",
        )
    return name


def _overloads(target: object) -> str:
    """What to write in place of an operator without its overload; "" for anything else."""
    if not isinstance(target, OpOverloadPacket):
        return ""
    names: list[str] = target.overloads()  # type: ignore[no-untyped-call]  # torch's
    told = ", ".join(f"{target}.{name}" for name in names if "out" not in name)
    return f"name an overload: {told}"


def _is_known(found: OpOverload) -> bool:
    packet = found.overloadpacket.__name__
    return found.namespace in _NAMESPACES and packet != _REACHES_FILES


def resolve_callable(name: str) -> Callable[..., Any]:
    """Return the function called ``name``.

    Raises:
        ArtifactError: When there is none in the closed set.
    """
    if name in _PLAIN:
        return _PLAIN[name]
    namespace, _, rest = name.partition(".")
    packet_name, _, overload = rest.partition(".")
    if namespace in _NAMESPACES and packet_name and overload:
        try:
            found = getattr(getattr(getattr(torch.ops, namespace), packet_name), overload)
        except AttributeError:
            found = None
        if isinstance(found, OpOverload) and _is_known(found):
            return found
    raise ArtifactError(
        f"there is no operator {name!r}",
        who="graph",
        hint="the file was written by another version of torch or sparsefx, or was altered",
    )
