"""Lowering of attention: as one operator, or spelled out in products and a softmax."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.graphs import shape_of
from sparsefx.backends.cpu.host import HIDDEN
from sparsefx.backends.cpu.plan import Buffer, Step
from sparsefx.backends.cpu.values import Heads, Kept, Mask, Rows, Scores

if TYPE_CHECKING:
    from sparsefx.backends.cpu.walk import Walk

__all__ = ["AttentionLowering"]

aten = torch.ops.aten
_OUTSIDE = "its input is computed outside the plan"


class AttentionLowering:
    """Lowers the attentions of one walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def fused(self, node: fx.Node) -> str | None:
        """`scaled_dot_product_attention`."""
        walk = self._walk
        mask = node.kwargs.get("attn_mask", (*node.args[3:], None)[0])
        if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
            return "causal attention"
        parts = [walk.heads(n) for n in node.args[:3]]
        q, k, v = parts
        if q is None or k is None or v is None:
            unknown = any(walk.value(n) is None for n in node.args[:3])
            return _OUTSIDE if unknown else "its inputs are not [batch, heads, tokens, size]"
        if {q.order, k.order, v.order} != {"bsd"}:
            return "its inputs are not [batch, heads, tokens, size]"
        scale = node.kwargs.get("scale") or 1 / math.sqrt(q.size)
        factor = float(scale) * q.factor * k.factor  # type: ignore[arg-type]  # a number
        hidden = None if mask is None else Mask(mask)
        return self._attend(node, Scores(q, k, factor, hidden), v)

    def product(self, node: fx.Node) -> str | None:
        """Scores (q k^T) or context (weights v)."""
        walk = self._walk
        scores, right = walk.value(node.args[0]), walk.heads(node.args[1])
        if isinstance(scores, Scores):
            if not scores.weights or right is None or right.order != "bsd":
                return "a product of scores that is not weights v"
            return self._attend(node, scores, right)
        left = walk.heads(node.args[0])
        if left is None or right is None:
            unknown = any(walk.value(n) is None for n in node.args[:2])
            return _OUTSIDE if unknown else "a product that is not attention"
        return self._score(node, left, right)

    def _score(self, node: fx.Node, left: Heads, right: Heads) -> str | None:
        if (left.order, right.order) != ("bsd", "bds"):
            return "a product of heads that is not q k^T"
        self._walk.values[node] = Scores(left, right, left.factor * right.factor)
        return None

    def masked_product(self, node: fx.Node) -> str | None:
        """`baddbmm(mask, q, k^T)`."""
        left, right = (self._walk.heads(n) for n in node.args[1:3])
        if left is None or right is None:
            return _OUTSIDE
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            return "a product with factors"
        why = self._score(node, left, right)
        return why or self.masked(node, node.args[0])

    def masked(self, node: fx.Node, mask: object, *, hides: bool = False) -> str | None:
        """A mask on the scores that `node` reads, or, where it has some already, on its own."""
        walk = self._walk
        found = walk.value(node) or walk.value(node.args[0])
        if not isinstance(found, Scores):
            return _OUTSIDE
        if found.mask is not None or found.weights:
            return "a second mask"
        walk.values[node] = replace(found, mask=Mask(mask, hides))
        return None

    def filled(self, node: fx.Node) -> str | None:
        """`masked_fill(scores, mask, -inf)`."""
        number = self._walk.number(node.args[2])
        if number is None or number > HIDDEN:
            return "fills in something else than what hides a key"
        return self.masked(node, node.args[1], hides=True)

    def chosen(self, node: fx.Node) -> str | None:
        """`where(mask, scores, -inf)`."""
        mask, kept, other = node.args[:3]
        number = self._walk.number(other)
        found = self._walk.value(kept)
        if not isinstance(found, Scores) or found.mask is not None or found.weights:
            return _OUTSIDE
        if number is None or number > HIDDEN:
            return "fills in something else than what hides a key"
        self._walk.values[node] = replace(found, mask=Mask(mask))
        return None

    def softmax(self, node: fx.Node) -> str | None:
        """Softmax over the keys."""
        value = self._walk.value(node.args[0])
        last = (-1, len(shape_of(node)) - 1)
        if not isinstance(value, Scores) or node.args[1] not in last:
            return _OUTSIDE if value is None else "a softmax that is not attention"
        self._walk.values[node] = replace(value, weights=True)
        return None

    def _attend(self, node: fx.Node, scores: Scores, v: Heads) -> str | None:
        walk = self._walk
        q, k = scores.query, scores.key
        if len({(h.heads, h.size) for h in (q, k, v)}) > 1:
            return "query, key and value differ in heads or size"
        if v.factor != 1:
            return "a factor on value"
        kept = walk.live.heads.get(node)
        if {h.rows.kept is not None for h in (q, k, v)} != {kept is not None}:
            return "its query, key or value lack heads"
        why = walk.mask(scores.mask)
        if why:
            return why
        heads = q.heads if kept is None else len(kept.channels)
        target = Buffer(node.name, heads * q.size, 4)
        words: dict[str, Any] = {
            "output": target,
            "output_rows": target.rows,
            "heads": heads,
            "head_size": q.size,
            "scale": scores.scale,
        }
        for name, part in zip("qkv", (q, k, v), strict=True):
            words[name] = part.rows.buffer
            words[f"{name}_rows"] = part.rows.buffer.rows
            words[f"{name}_first"] = part.rows.first
        facts = {"macs_per_key": 2.0 * target.rows}
        q_code, k_code = q.rows.code, k.rows.code
        kind = "attention"
        if q_code is not None and k_code is not None and v.rows.code is None:
            kind = _int8_attention(walk)
            words["scale"] = scores.scale * q_code[0] * k_code[0]
            words["q_zero"] = q_code[1]
        elif any(h.rows.code is not None for h in (q, k, v)):
            return "its inputs are quantized in ways that no kernel knows"
        walk.steps.append(Step(catalog.other(kind), words, node.name, facts))
        if kept is not None:
            walk.dropped[node.name] = q.heads - heads
            channels = kept.channels[:, None] * q.size + np.arange(q.size)
            kept = Kept(channels.reshape(-1))
        walk.values[node] = Rows(target, kept=kept)
        return None


def _int8_attention(walk: Walk) -> str:
    """The faster of the kernels that multiply codes; their results are the same bits."""
    if not walk.isa.has_tiles:
        return "attention_i8"
    rates = walk.rates
    return "attention_amx" if rates.attention_tiles < rates.attention else "attention_i8"
