"""Attention cores: fused attention, and softmax between two matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsefx.passes.analyses.dataflow import (
    is_linear,
    last_dim,
    next_nodes,
    origin,
    passes_on,
    previous_nodes,
    products,
)
from sparsefx.passes.analyses.operators import SOFTMAXES

__all__ = ["AttentionCore", "NoCore", "find_attention", "linears_behind"]

aten = torch.ops.aten

_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class AttentionCore:
    """Self-attention between its q, k, v linears and its output.

    Attributes:
        q: Linear that makes the query.
        k: Linear that makes the key.
        v: Linear that makes the value.
        query: The query as the first product, or fused attention, reads it: ``[batch, heads,
            sequence, head_size]``, or with batch and heads merged.
        key: The key, likewise; transposed where a product wants it so.
        value: The value, likewise.
        scores: After scale, position terms and mask, before softmax: ``[batch, heads, sequence,
            sequence]``; None when fused (run ``decompose-attention``).
        probabilities: The softmax, before dropout; None when fused.
        context: The second product, or the fused node: what attention returns.
        sdpa: The fused node, else None.
        mask: The mask of the fused node, if it has one.
        heads: Number of heads.
        head_size: Width of one head.
    """

    q: fx.Node
    k: fx.Node
    v: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scores: fx.Node | None
    probabilities: fx.Node | None
    context: fx.Node
    sdpa: fx.Node | None
    mask: fx.Node | None
    heads: int
    head_size: int


@dataclass(frozen=True)
class NoCore:
    """An attention that is no self-attention with three linears, and why."""

    context: fx.Node
    reason: str


def find_attention(graph: fx.Graph) -> Iterator[AttentionCore | NoCore]:
    """Yield every attention of the graph, in graph order."""
    for node in graph.nodes:
        if node.target is _SDPA:
            yield _fused(node)
        elif node.target in SOFTMAXES:
            for context in next_nodes(node, _is_product, through=passes_on):
                yield _spelled(node, context)


def linears_behind(node: fx.Node) -> list[fx.Node]:
    """Return the nearest linears behind a node."""
    return previous_nodes(node, is_linear)


def _is_product(node: fx.Node) -> bool:
    return products(node) is not None


def _fused(node: fx.Node) -> AttentionCore | NoCore:
    query, key, value = (arg for arg in node.args[:3] if isinstance(arg, fx.Node))
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return _core((query, key, value), None, None, node, mask if isinstance(mask, fx.Node) else None)


def _spelled(softmax: fx.Node, context: fx.Node) -> AttentionCore | NoCore:
    scores = softmax.args[0]
    factors = products(context)
    if not isinstance(scores, fx.Node) or factors is None:
        return NoCore(context, "softmax of a constant")
    if origin(factors[0]) is not softmax:
        return NoCore(context, "the softmax is the second factor of its product")
    behind = previous_nodes(scores, lambda node: is_linear(node) or _is_product(node))
    reason = "no product of two activations lies behind the softmax"
    for product in behind:
        pair = products(product)
        if pair is None:
            continue
        found = _core((*pair, factors[1]), scores, softmax, context, None)
        if isinstance(found, AttentionCore):
            return found
        reason = found.reason
    return NoCore(context, reason)


def _core(
    inputs: tuple[fx.Node, fx.Node, fx.Node],
    scores: fx.Node | None,
    softmax: fx.Node | None,
    context: fx.Node,
    mask: fx.Node | None,
) -> AttentionCore | NoCore:
    """Return the core with these query, key and value, when one linear lies behind each."""
    linears = []
    for name, node in zip(("query", "key", "value"), inputs, strict=True):
        behind = linears_behind(node)
        if len(behind) != 1:
            return NoCore(context, f"{len(behind)} linears lie behind its {name}, expected one")
        linears.append(behind[0])
    sources = {origin(linear.args[0]) for linear in linears if isinstance(linear.args[0], fx.Node)}
    if len(sources) != 1:
        names = ", ".join(f"%{node.name}" for node in sorted(sources))
        return NoCore(context, f"query, key and value come from different inputs ({names})")
    head_size = last_dim(inputs[2])
    heads = _heads(scores if scores is not None else inputs[0], linears, head_size)
    if not heads:
        return NoCore(context, "the number of heads cannot be read from the shapes")
    sdpa = context if softmax is None else None
    return AttentionCore(
        q=linears[0],
        k=linears[1],
        v=linears[2],
        query=inputs[0],
        key=inputs[1],
        value=inputs[2],
        scores=scores,
        probabilities=softmax,
        context=context,
        sdpa=sdpa,
        mask=mask,
        heads=heads,
        head_size=head_size,
    )


def _heads(node: fx.Node, linears: list[fx.Node], head_size: int) -> int:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dim() == 4 and isinstance(value.shape[1], int):
        return value.shape[1]
    parts = 3 if linears[0] is linears[2] else 1
    return last_dim(linears[2]) // parts // head_size if head_size else 0
