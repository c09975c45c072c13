"""How masks stand in a graph: ``masked = weight * mask``, the mask a buffer beside its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["MASK_SUFFIX", "MaskSite", "find_masks"]

MASK_SUFFIX = "_mask"
"""A weight ``layer.weight`` has its mask in the buffer ``layer.weight_mask``."""


@dataclass(frozen=True)
class MaskSite:
    """One masked tensor: the names of weight and mask, and the node of their product."""

    weight: str
    mask: str
    product: fx.Node


def find_masks(program: Program) -> tuple[MaskSite, ...]:
    """Return the masked tensors in graph order, each once."""
    found = []
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor):
        if len(node.args) != 2 or not all(
            isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in node.args
        ):
            continue
        weight, mask = (str(arg.target) for arg in node.args)
        if mask == weight + MASK_SUFFIX:
            found.append(MaskSite(weight, mask, node))
    return tuple(found)
