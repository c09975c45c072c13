"""What lowering does with each operator. A handler returns why it did not take a node, or None."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.graphs import (
    ACTIVATIONS,
    IDENTITIES,
    activation,
    identity_source,
    rank,
    shape_of,
)
from sparsefx.backends.cpu.layers import LinearLowering
from sparsefx.backends.cpu.plan import SEQUENCES, TOKENS, Buffer, Step, Word
from sparsefx.backends.cpu.values import Embedded, Heads, Octets, Parts, Rows, Scores
from sparsefx.backends.cpu.walk import Walk

__all__ = ["handlers"]

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_CUTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
_OUTSIDE = "its input is computed outside the plan"

Handler = Callable[[fx.Node], str | None]


def handlers(walk: Walk) -> dict[Any, Handler]:
    """The handler of each operator."""
    operators = _Operators(walk)
    table: dict[Any, Handler] = dict.fromkeys(_VIEWS, operators.view)
    table |= dict.fromkeys(IDENTITIES, operators.same)
    table |= dict.fromkeys(_CUTS, operators.cut)
    table |= dict.fromkeys(ACTIVATIONS, operators.activation)
    table |= {
        aten.embedding.default: operators.embedding,
        aten.linear.default: operators.linears.lower,
        aten.layer_norm.default: operators.norm,
        aten.add.Tensor: operators.add,
        aten.mul.Tensor: operators.multiply,
        aten.div.Tensor: operators.scaled,
        aten.transpose.int: operators.transpose,
        aten.permute.default: operators.permute,
        aten.select.int: operators.select,
        operator.getitem: operators.part,
        aten.scaled_dot_product_attention.default: operators.attention,
        aten.matmul.default: operators.matmul,
        aten.softmax.int: operators.softmax,
        torch.ops.sparsefx.quantize.default: operators.quantize,
        torch.ops.sparsefx.dequantize.default: operators.dequantize,
    }
    return table


class _Operators:
    """Handlers that share the walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.linears = LinearLowering(walk)

    # shapes

    def same(self, node: fx.Node) -> str | None:
        """Dropout in eval mode, contiguous, whole slices, conversions to the same type."""
        source = identity_source(node)
        if source is None:
            return f"{node.target} changes its input"
        return self._alias(node, source)

    def view(self, node: fx.Node) -> str | None:
        """Channels into heads, heads into channels, or no change."""
        source = node.args[0]
        value = self._walk.value(source)
        assert isinstance(source, fx.Node)
        if shape_of(source) == shape_of(node):
            return self._alias(node, source)
        shape = shape_of(node)
        if isinstance(value, Rows) and len(shape) == 4 and rank(source) == 3:
            heads, size = shape[2], shape[3]
            count = value.count or value.buffer.rows
            if isinstance(heads, int) and isinstance(size, int) and heads * size == count:
                self._walk.values[node] = Heads(value, heads, size)
                return None
        joined = isinstance(value, Heads) and value.order == "bshd" and len(shape) == 3
        if joined and isinstance(value, Heads) and shape[2] == value.heads * value.size:
            self._walk.values[node] = value.rows
            return None
        return _OUTSIDE if value is None else "a reshape that is neither heads nor channels"

    def transpose(self, node: fx.Node) -> str | None:
        """Exchange of two dimensions of heads."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Heads):
            return _OUTSIDE if value is None else "a transpose of something else than heads"
        self._walk.values[node] = value.swap(int(node.args[1]), int(node.args[2]))  # type: ignore[arg-type]
        return None

    def permute(self, node: fx.Node) -> str | None:
        """Reordering of the dimensions of heads."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Heads):
            return _OUTSIDE if value is None else "a permute of something else than heads"
        order = "".join(value.order[int(d)] for d in node.args[1])  # type: ignore[union-attr, arg-type]
        self._walk.values[node] = replace(value, order=order)
        return None

    def cut(self, node: fx.Node) -> str | None:
        """Channels cut into parts."""
        value, dim = self._walk.value(node.args[0]), (*node.args[2:], 0)[0]
        if not isinstance(value, Rows):
            return _OUTSIDE if value is None else "a cut of something else than channels"
        sizes = [part.shape[-1] for part in node.meta["val"]]
        if dim not in (-1, node.meta["val"][0].dim() - 1):
            return "a cut along something else than the channels"
        starts = [value.first + sum(sizes[:index]) for index in range(len(sizes))]
        parts = [replace(value, first=a, count=n) for a, n in zip(starts, sizes, strict=True)]
        self._walk.values[node] = Parts(tuple(parts))
        return None

    def part(self, node: fx.Node) -> str | None:
        """One part of a cut."""
        value, index = self._walk.value(node.args[0]), node.args[1]
        if not isinstance(value, Parts) or not isinstance(index, int):
            return _OUTSIDE
        self._walk.values[node] = value.rows[index]
        return None

    def select(self, node: fx.Node) -> str | None:
        """The first token of every sequence."""
        walk = self._walk
        source = walk.rows(walk.value(node.args[0]))
        if source is None:
            return _OUTSIDE
        if tuple(node.args[1:3]) != (1, 0) or source.buffer.space != TOKENS:
            return "selects something else than the first token"
        target = Buffer(node.name, source.buffer.rows, 4, SEQUENCES)
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": source.buffer,
            "output": target,
        }
        walk.steps.append(Step(catalog.other("pick"), words, node.name))
        walk.values[node] = Rows(target)
        return None

    def _alias(self, node: fx.Node, source: fx.Node) -> str | None:
        value = self._walk.value(source)
        if value is None:
            return _OUTSIDE
        self._walk.values[node] = value
        return None

    # elementwise

    def embedding(self, node: fx.Node) -> str | None:
        """One table; written when its sum is complete."""
        table, index = node.args[:2]
        assert isinstance(table, fx.Node)
        weight = self._walk.host.constant(table)
        if weight is None:
            return "its table depends on an input"
        if not isinstance(index, fx.Node) or index not in self._walk.host.nodes:
            return "its index depends on activations"
        if not self._walk.host.is_per_token(index):
            return "its index is not [batch, sequence]"
        self._walk.values[node] = Embedded((weight,), (index,))
        return None

    def add(self, node: fx.Node) -> str | None:
        """Embeddings, an attention mask, or two rows."""
        walk = self._walk
        left, right = (walk.value(n) for n in node.args[:2])
        if node.kwargs.get("alpha", 1) != 1:
            return "an addition with a factor"
        if isinstance(left, Embedded) and isinstance(right, Embedded):
            walk.values[node] = Embedded(left.tables + right.tables, left.indices + right.indices)
            return None
        if isinstance(left, Scores) and right is None and left.mask is None:
            walk.values[node] = replace(left, mask=node.args[1])  # type: ignore[arg-type]
            return None
        return self._both("add", node)

    def multiply(self, node: fx.Node) -> str | None:
        """A factor on attention scores, or two rows, as gates have them."""
        known = [self._walk.value(n) is not None for n in node.args[:2]]
        return self._both("mul", node) if all(known) else self.scaled(node)

    def _both(self, operation: str, node: fx.Node) -> str | None:
        """`add` or `mul` of two values that are rows of the same shape."""
        walk = self._walk
        a, b = (walk.rows(walk.value(n)) for n in node.args[:2])
        if a is None or b is None:
            return _OUTSIDE
        if a.buffer.rows != b.buffer.rows or a.buffer.space != b.buffer.space:
            return f"{operation} broadcasts"
        self._elementwise(operation, node, a, b)
        return None

    def activation(self, node: fx.Node) -> str | None:
        """An activation that no linear took along."""
        source = self._walk.rows(self._walk.value(node.args[0]))
        if source is None:
            return _OUTSIDE
        self._elementwise(activation(node), node, source, source)
        return None

    def _elementwise(self, operation: str, node: fx.Node, a: Rows, b: Rows) -> None:
        target = Buffer(node.name, a.buffer.rows, 4, a.buffer.space)
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": a.buffer,
            "other": b.buffer,
            "output": target,
            "space": target.space,
        }
        self._walk.steps.append(Step(catalog.elementwise(operation), words, node.name))
        self._walk.values[node] = Rows(target)

    def norm(self, node: fx.Node) -> str | None:
        """Layer norm over the channels, with the quantize after it."""
        walk = self._walk
        source = walk.rows(walk.value(node.args[0]))
        if source is None:
            return _OUTSIDE
        _, shape, weight, bias, epsilon = (*node.args, None, None, 1e-5)[:5]
        channels = source.buffer.rows
        if list(shape) != [channels]:  # type: ignore[arg-type]  # a list of sizes
            return "a norm over more than the channels"
        floats, quantizes, octets = self.linears.sinks(node, channels, source.buffer.space)
        words: dict[str, Any] = {
            "rows": channels,
            "input": source.buffer,
            "weight": self._vector(weight, channels, 1.0),
            "bias": self._vector(bias, channels, 0.0),
            "epsilon": float(epsilon),  # type: ignore[arg-type]
            "space": source.buffer.space,
        }
        if floats:
            words["output"] = Buffer(node.name, channels, 4, source.buffer.space)
            walk.values[node] = Rows(words["output"])
        if octets is not None:
            words["output_bytes"] = octets.buffer
            words["inverse_scale"] = 1.0 / octets.scale
            words["zero_point"] = octets.zero_point
            walk.values |= dict.fromkeys(quantizes, octets)
        kernel = catalog.norm_kernel(floats=floats, octets=octets is not None)
        walk.steps.append(Step(kernel, words, node.name))
        walk.taken.add(node)
        return None

    def _vector(self, node: object, channels: int, default: float) -> np.ndarray[Any, Any]:
        value = self._walk.host.constant(node) if isinstance(node, fx.Node) else None
        if value is None:
            return np.full(channels, default, np.float32)
        return np.ascontiguousarray(value.detach().float().numpy())

    def quantize(self, node: fx.Node) -> str | None:
        """uint8 rows from fp32 rows that were written."""
        walk = self._walk
        source = walk.rows(walk.value(node.args[0]))
        if source is None:
            return _OUTSIDE
        parameters = walk.quantization(node)
        if parameters is None:
            return "not uint8 0..255 with one scale"
        walk.values[node] = walk.quantize(source, node.name, *parameters)
        return None

    def dequantize(self, node: fx.Node) -> str | None:
        """The value that a quantized linear reads; widened only if something else needs it."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Octets):
            return _OUTSIDE
        self._walk.values[node] = replace(value, floats=True)
        return None

    # attention

    def attention(self, node: fx.Node) -> str | None:
        """A fused attention."""
        q, k, v, mask = (*node.args[:4], None)[:4]
        if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
            return "causal attention"
        heads = [self._walk.value(n) for n in (q, k, v)]
        known = [h for h in heads if isinstance(h, Heads) and h.order == "bhsd"]
        if len(known) < 3:
            return _OUTSIDE if None in heads else "its inputs are not [batch, heads, tokens, size]"
        mask = node.kwargs.get("attn_mask", mask)
        scale = node.kwargs.get("scale") or 1 / math.sqrt(known[0].size)
        return self._attend(node, known[0], known[1], known[2], float(scale), mask)  # type: ignore[arg-type]

    def matmul(self, node: fx.Node) -> str | None:
        """Scores (q k^T) or context (weights v) of an attention that is spelled out."""
        left, right = (self._walk.value(n) for n in node.args[:2])
        if isinstance(left, Heads) and isinstance(right, Heads):
            if (left.order, right.order) != ("bhsd", "bhds"):
                return "a product of heads that is not q k^T"
            self._walk.values[node] = Scores(left, right)
            return None
        if isinstance(left, Scores) and isinstance(right, Heads):
            if not left.weights or right.order != "bhsd":
                return "a product of scores that is not weights v"
            key = left.key.swap(2, 3)
            return self._attend(node, left.query, key, right, left.scale, left.mask)
        return _OUTSIDE if left is None or right is None else "a product that is not attention"

    def scaled(self, node: fx.Node) -> str | None:
        """A factor on attention scores."""
        value, factor = self._walk.value(node.args[0]), node.args[1]
        if not isinstance(value, Scores) or value.mask is not None:
            return _OUTSIDE if value is None else "a factor on something else than scores"
        if not isinstance(factor, (int, float)):
            return "a factor that is not a number"
        amount = factor if node.target is aten.mul.Tensor else 1 / factor
        self._walk.values[node] = replace(value, scale=value.scale * amount)
        return None

    def softmax(self, node: fx.Node) -> str | None:
        """Softmax over the keys."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Scores) or node.args[1] not in (-1, 3):
            return _OUTSIDE if value is None else "a softmax that is not attention"
        self._walk.values[node] = replace(value, weights=True)
        return None

    def _attend(
        self, node: fx.Node, q: Heads, k: Heads, v: Heads, scale: float, mask: object
    ) -> str | None:
        walk = self._walk
        if len({(h.heads, h.size) for h in (q, k, v)}) > 1:
            return "query, key and value differ in heads or size"
        why = walk.mask(mask)
        if why:
            return why
        target = Buffer(node.name, q.heads * q.size, 4)
        words: dict[str, Any] = {
            "output": target,
            "output_rows": target.rows,
            "heads": q.heads,
            "head_size": q.size,
            "scale": scale,
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
            words["scale"] = scale * q_code[0] * k_code[0]
            words["q_zero"] = q_code[1]
        elif any(h.rows.code is not None for h in (q, k, v)):
            return "its inputs are quantized in ways that no kernel knows"
        walk.steps.append(Step(catalog.other(kind), words, node.name, facts))
        walk.values[node] = Heads(Rows(target), q.heads, q.size, "bhsd")
        return None


def _int8_attention(walk: Walk) -> str:
    """The faster of the kernels that multiply codes; their results are the same bits."""
    if not walk.isa.has_tiles:
        return "attention_i8"
    rates = walk.rates
    return "attention_amx" if rates.attention_tiles < rates.attention else "attention_i8"
