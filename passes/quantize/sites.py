"""Finds what can be quantized: linears, where their weight comes from, and what they feed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from sparsefx.graph.printing import node_and_op
from sparsefx.joined import DISTILL_PREFIX, TEACHER_PREFIX
from sparsefx.masks import MASK_SUFFIX, find_masks
from sparsefx.passbase import Skip
from sparsefx.passes.analyses.dataflow import origin
from sparsefx.passes.analyses.operators import (
    CASTS,
    CONVOLUTIONS,
    COPIES,
    DROPOUTS,
    PARTS,
    REORDERS,
    RESHAPES,
    SOFTMAXES,
)

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["QuantizableLinear", "find_linears", "is_requantized_in_paper"]

aten = torch.ops.aten

# What only moves values, scales them by a constant or hides some of them: a quantizer before it
# serves as well as one behind it.
_MOVES = (
    COPIES
    | CASTS
    | DROPOUTS
    | RESHAPES
    | REORDERS
    | PARTS
    | {aten.repeat.default, aten.mul.Scalar, aten.div.Scalar}
)
_SCALES = {aten.mul.Tensor, aten.div.Tensor}
_SHIFTS = {
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.gather.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
}
_ACTIVATIONS = {
    aten.gelu.default,
    aten.tanh.default,
    aten.relu.default,
    aten.silu.default,
    aten.sigmoid.default,
}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default}
_ADD_TO = {aten.addmm.default, aten.baddbmm.default}  # their first input is no factor
_MULTIPLIES = (
    CONVOLUTIONS | _PRODUCTS | _ADD_TO | {aten.mm.default, aten.mv.default, aten.einsum.default}
)
_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class QuantizableLinear:
    """One linear that can be quantized, of an encoder or not.

    Unlike a ``LinearSite`` of the encoder it says what it multiplies with, and not its bias, which
    stays as it is.

    Attributes:
        node: The ``aten.linear`` node.
        weight: Name of its weight in the state_dict.
        operand: The node that it multiplies with: the weight, or the product of weight and mask.
    """

    node: fx.Node
    weight: str
    operand: fx.Node

    @property
    def module(self) -> str:
        """Name of the module that holds the weight; empty at the root."""
        return self.weight.rpartition(".")[0]

    @property
    def prefix(self) -> str:
        """What the names of its quantizers' tensors begin with: the weight's, less ``weight``."""
        owner, dot, leaf = self.weight.rpartition(".")
        return owner + dot if leaf == "weight" else f"{self.weight}_"


def find_linears(program: Program) -> tuple[list[QuantizableLinear], list[Skip]]:
    """Return the linears of ``program`` in graph order, and those that cannot be quantized.

    Those of a teacher that distillation joined to the graph are in neither.
    """
    products = {site.product: site.weight for site in find_masks(program)}
    sites, skipped = [], []
    for node in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        operand = node.args[1]
        if operand.op != "get_attr" and operand not in products:
            reason = f"its weight is computed by %{operand.name}; only a tensor is quantized"
            skipped.append(Skip(f"%{node.name}", reason))
            continue
        weight = products.get(operand, str(operand.target))
        if weight.startswith((TEACHER_PREFIX, DISTILL_PREFIX)):
            continue
        if others := _other_users(program, weight):
            names = ", ".join(f"%{user.name}" for user in others)
            tied = any(user.target is aten.embedding.default for user in others)
            kind = " (tied to an embedding)" if tied else ""
            skipped.append(Skip(weight, f"{names} reads it too{kind}, and stays float32"))
            continue
        sites.append(QuantizableLinear(node, weight, operand))
    return sites, skipped + _other_matrices(program, products)


def _other_matrices(program: Program, products: Mapping[fx.Node, str]) -> list[Skip]:
    """Tell of the trained matrices that something else than a linear multiplies by."""
    found: dict[str, Skip] = {}
    for node in program.graph.nodes:
        if node.target not in _MULTIPLIES:
            continue
        for factor in node.all_input_nodes[1 if node.target in _ADD_TO else 0 :]:
            source = origin(factor)
            name = products.get(source, str(source.target))
            if source.op != "get_attr" and source not in products:
                continue
            tensor = program.tensor(name)
            if isinstance(tensor, nn.Parameter) and tensor.dim() > 1:
                reason = f"{node_and_op(node)} multiplies by it; only linears are quantized"
                found.setdefault(name, Skip(name, reason))
    return list(found.values())


def _other_users(program: Program, weight: str) -> list[fx.Node]:
    """Return the nodes that read ``weight`` and are neither its mask's product nor a linear."""
    found = []
    for reader in program.graph.find_nodes(op="get_attr", target=weight):
        for user in reader.users:
            is_mask = any(
                isinstance(arg, fx.Node) and arg.target == weight + MASK_SUFFIX for arg in user.args
            )
            is_linear = user.target is aten.linear.default and user.args[1] is reader
            if not is_mask and not is_linear:
                found.append(user)
    return found


def is_requantized_in_paper(node: fx.Node) -> bool:
    """Return whether Prune Once for All quantizes the output of this linear again.

    Its list is query, key, intermediate and pooler; found here by what they feed: the product under
    the softmax of attention (query, key), or an activation function (intermediate, pooler). The
    outputs of value, both output.dense and the classifier stay float32.
    """
    return any(_is_activation(user) or _makes_scores(user, source) for source, user in _feeds(node))


def _feeds(node: fx.Node) -> Iterable[tuple[fx.Node, fx.Node]]:
    """Yield (source, user): what uses the value of ``node``, looking through moves."""
    stack, seen = [node], {node}
    while stack:
        source = stack.pop()
        for user in source.users:
            if not _moves(user):
                yield source, user
            elif user not in seen:
                seen.add(user)
                stack.append(user)


def _moves(node: fx.Node) -> bool:
    return node.target in _MOVES or (node.target in _SCALES and _is_scalar(node.args[1]))


def _is_scalar(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return True
    fake = value.meta.get("val")
    return not isinstance(fake, torch.Tensor) or fake.dim() == 0


def _is_activation(node: fx.Node) -> bool:
    return node.target in _ACTIVATIONS


def _makes_scores(node: fx.Node, operand: fx.Node) -> bool:
    """Return whether ``node`` multiplies ``operand`` into the scores below a softmax."""
    if node.target is _SDPA:
        return operand in node.args[:2]
    return node.target in _PRODUCTS and _reaches_softmax(node)


def _reaches_softmax(node: fx.Node) -> bool:
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user.target in SOFTMAXES:
                return True
            passes = user.target in _SHIFTS or user.target in _SCALES or _moves(user)
            if passes and user not in seen:
                seen.add(user)
                stack.append(user)
    return False
