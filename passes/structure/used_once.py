"""Whether tensors may change their shape: something else may read them too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["why_shared"]


def why_shared(program: Program, names: Iterable[str]) -> str:
    """Return which of the tensors is used more than once; empty when none is."""
    for name in names:
        (node,) = program.graph.find_nodes(op="get_attr", target=name)
        if len(node.users) > 1:
            return f"{name} is used {len(node.users)} times"
    return ""
