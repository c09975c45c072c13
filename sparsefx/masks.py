"""How masks stand in a graph: ``masked = weight * mask``, the mask a buffer beside its weight.

The product is ``aten.mul``, or one of the two ops of :mod:`sparsefx.graph.ops` that have other
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

import sparsefx.graph.ops  # noqa: F401  # registers the ops that are looked for here
from sparsefx.joined import TEACHER_PREFIX

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["MASK_SUFFIX", "MaskSite", "find_masks", "mask_scores", "student_masks"]

_PRODUCTS = (
    torch.ops.aten.mul.Tensor,
    torch.ops.sparsefx.straight_through.default,
    torch.ops.sparsefx.scored_mask.default,
)

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
    for node in program.graph.nodes:
        if node.target not in _PRODUCTS or not all(
            isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in node.args
        ):
            continue
        weight, mask = (str(arg.target) for arg in node.args[:2])
        if mask == weight + MASK_SUFFIX:
            found.append(MaskSite(weight, mask, node))
    return tuple(found)


def student_masks(program: Program) -> tuple[MaskSite, ...]:
    """Return the masked tensors without those of a teacher, which nothing may change or count."""
    sites = find_masks(program)
    return tuple(site for site in sites if not site.weight.startswith(TEACHER_PREFIX))


def mask_scores(program: Program) -> frozenset[str]:
    """Return the names of the parameters that masks are chosen by; they are no weights."""
    scored = torch.ops.sparsefx.scored_mask.default
    nodes = program.graph.find_nodes(op="call_function", target=scored)
    return frozenset(str(node.args[2].target) for node in nodes)
