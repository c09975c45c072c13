"""Lowering of attention: as one operator, or spelled out in products and a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from sparsefx.backends.cpu.analyses.graphs import integer, rank, shape_of
from sparsefx.backends.cpu.analyses.masks import FILLED, NOTHING, DistanceTable
from sparsefx.backends.cpu.analyses.relative import PositionTables
from sparsefx.backends.cpu.analyses.values import (
    Heads,
    Kept,
    Mask,
    Projected,
    Relative,
    Rows,
    Scores,
    Term,
    Value,
)
from sparsefx.backends.cpu.kernels.distances import EDGE
from sparsefx.backends.cpu.lowering.pooling import ONLY_MEANS
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word

if TYPE_CHECKING:
    from sparsefx.backends.cpu.lowering.walk import Walk

__all__ = ["AttentionLowering", "by_distance"]

aten = torch.ops.aten
_COMPUTED = "its mask depends on activations"
_NOT_HIDING = "fills in something else than what hides a key"


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
            unknown = next((n for n in node.args[:3] if walk.value(n) is None), None)
            what = "its inputs are not [batch, heads, tokens, size]"
            return what if unknown is None else walk.unread(unknown)
        if {q.order, k.order, v.order} != {"bsd"}:
            return "its inputs are not [batch, heads, tokens, size]"
        scale = node.kwargs.get("scale") or 1 / math.sqrt(q.size)
        factor = float(scale) * q.factor * k.factor  # type: ignore[arg-type]  # a number
        if mask is None:
            return self._attend(node, Scores(q, k, factor), v)
        added = self._mask(node, mask)
        return _COMPUTED if added is None else self._attend(node, Scores(q, k, factor, (added,)), v)

    def product(self, node: fx.Node) -> str | None:
        """Scores (q k^T) or context (weights v)."""
        walk = self._walk
        scores, right = walk.value(node.args[0]), walk.heads(node.args[1])
        if isinstance(scores, Scores):
            if not scores.weights or right is None or right.order != "bsd":
                return "a product of scores that is not weights v"
            return self._attend(node, scores, right)
        left = walk.heads(node.args[0])
        table = next((n for n in node.args[:2] if n in walk.host.nodes), None)
        if isinstance(table, fx.Node) and (left or right):
            return self._projected(node, left, table)
        if left is None or right is None:
            unknown = all(walk.value(n) is None for n in node.args[:2])
            return walk.unread(node.args[0]) if unknown else "a product that is not attention"
        return self._score(node, left, right)

    def _score(self, node: fx.Node, left: Heads, right: Heads) -> str | None:
        if (left.order, right.order) != ("bsd", "bds"):
            return "a product of heads that is not q k^T"
        self._walk.values[node] = Scores(left, right, left.factor * right.factor)
        return None

    def _projected(self, node: fx.Node, left: Heads | None, table: fx.Node) -> str | None:
        """Heads times embeddings of positions."""
        if left is None or left.order != "bsd":
            return "a product with positions that is not of heads with a table"
        self._walk.values[node] = Projected(left, table)
        return None

    def gathered(self, node: fx.Node) -> str | None:
        """`gather`: for each pair of tokens its product with an embedding."""
        source, dim, index = node.args[:3]
        value = self._walk.value(source)
        if not isinstance(value, Projected):
            what = "gathers something else than products"
            return self._walk.unread(source) if value is None else what
        last = dim in (-1, rank(node) - 1)
        if not last or not isinstance(index, fx.Node) or index not in self._walk.host.nodes:
            return "gathers by activations, or along tokens"
        if shape_of(node)[:-1] != shape_of(source)[:-1]:  # type: ignore[arg-type]  # it has a value
            return "gathers from a part of the products"
        term = Term(value.heads, value.table, index, factor=value.heads.factor)
        self._walk.values[node] = Relative((term,))
        return None

    def joined(self, node: fx.Node, left: Value, right: Value) -> str | None:
        """What positions add, to scores or to each other; says why where it is neither."""
        terms = [v.terms for v in (left, right) if isinstance(v, Relative)]
        scores = [v for v in (left, right) if isinstance(v, Scores)]
        if len(terms) == 2:
            self._walk.values[node] = Relative(terms[0] + terms[1])
        elif terms and scores and not scores[0].weights:
            summed = Relative(scores[0].relative.terms + terms[0])
            self._walk.values[node] = replace(scores[0], relative=summed)
        else:
            return "adds products with positions to something else than scores"
        return None

    def moved(self, node: fx.Node, value: Scores | Relative) -> str | None:
        """A view: heads in the dimension of the batch, or in one of their own.

        What positions add to scores may also be transposed.
        """
        old, new = shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]  # it has a value
        known = node.target in (aten.view.default, aten.reshape.default) and old[-2:] == new[-2:]
        if node.target is aten.transpose.int and isinstance(value, Relative):
            swapped = {integer(n) % len(old) for n in node.args[1:3]}
            known, value = swapped == {len(old) - 2, len(old) - 1}, value.transposed()
        if not known:
            return "moves scores"
        self._walk.values[node] = value
        return None

    def masked_product(self, node: fx.Node) -> str | None:
        """`baddbmm(mask, q, k^T)`."""
        walk = self._walk
        left, right = (walk.heads(n) for n in node.args[1:3])
        if left is None or right is None:
            unknown = all(walk.value(n) is None for n in node.args[1:3])
            return walk.unread(node.args[1]) if unknown else "a product that is not attention"
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            return "a product with factors"
        why = self._score(node, left, right) or self.masked(node, node.args[0])
        if why:
            walk.values.pop(node, None)  # scores without what is added are no value of it
        return why

    def masked(self, node: fx.Node, mask: object, *, hides: bool = False) -> str | None:
        """A mask or bias on the scores that `node` reads, or, where it has some, on its own."""
        walk = self._walk
        scores = next((n for n in (node, *node.args[:2]) if walk.value(n) is not None), None)
        found = walk.value(scores)
        if not isinstance(found, Scores):
            what = f"fills in states; {ONLY_MEANS}"
            return walk.unread(node.args[0]) if found is None else what
        if found.weights:
            return "a mask after softmax"
        added = self._mask(node, mask, hides=hides)
        if added is None:
            return _COMPUTED
        walk.values[node] = replace(found, masks=(*found.masks, added))
        return None

    def _mask(self, node: fx.Node, mask: object, *, hides: bool = False) -> Mask | None:
        """A mask on the scores, or the attention, of a node; None if activations decide it."""
        if not isinstance(mask, fx.Node) or mask not in self._walk.host.nodes:
            return None
        return Mask(mask, hides, joined=rank(node) == 3)

    def filled(self, node: fx.Node) -> str | None:
        """`masked_fill(scores, mask, -inf)`."""
        number = self._walk.number(node.args[2])
        if number is None or number > FILLED:
            return _NOT_HIDING
        return self.masked(node, node.args[1], hides=True)

    def chosen(self, node: fx.Node) -> str | None:
        """`where(mask, scores, -inf)`."""
        mask, kept, other = node.args[:3]
        number = self._walk.number(other)
        found = self._walk.value(kept)
        if not isinstance(found, Scores):
            what = f"fills in states; {ONLY_MEANS}"
            return self._walk.unread(kept) if found is None else what
        if found.weights:
            return "a mask after softmax"
        if number is None or number > FILLED:
            return _NOT_HIDING
        shown = self._mask(node, mask)
        if shown is None:
            return _COMPUTED
        self._walk.values[node] = replace(found, masks=(*found.masks, shown))
        return None

    def softmax(self, node: fx.Node) -> str | None:
        """Softmax over the keys."""
        value = self._walk.value(node.args[0])
        last = (-1, len(shape_of(node)) - 1)
        if not isinstance(value, Scores) or node.args[1] not in last:
            what = "a softmax that is not attention"
            return self._walk.unread(node.args[0]) if value is None else what
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
        kind = _kernel(walk, [q, k, v])
        if kind is None:
            return "its inputs are quantized in ways that no kernel knows"
        tables = self._tables(scores)
        if isinstance(tables, str):
            return tables
        meaning = walk.meaning(scores.masks)
        if isinstance(meaning, str):
            return meaning
        heads = q.heads if kept is None else len(kept.channels)
        target = Buffer(node.name, heads * q.size, 4)
        facts = {"macs_per_key": 2.0 * target.rows}
        step = Step(catalog.other(kind), _words(scores, v, heads, target), node.name, facts)
        if meaning.table is not None:
            step = _with_table(step, meaning.table, None if kept is None else kept.channels)
        if tables is not None:
            step = _with_positions(step if meaning.table else _with_table(step, NOTHING), tables)
        if "longest" in step.words:
            walk.indices.setdefault("positions", None)
        walk.steps.append(step)
        if kept is not None:
            walk.dropped[node.name] = q.heads - heads
            channels = kept.channels[:, None] * q.size + np.arange(q.size)
            kept = Kept(channels.reshape(-1))
        walk.values[node] = Rows(target, kept=kept)
        return None

    def _tables(self, scores: Scores) -> PositionTables | str | None:
        """What the kernel reads to add products with positions; or why it cannot."""
        terms = scores.relative.terms
        for term in terms:
            heads = scores.key if term.of_keys else scores.query
            same = (heads.rows, heads.heads, heads.size)
            if (term.heads.rows, term.heads.heads, term.heads.size) != same:
                return "products with positions of something else than its query and key"
            if heads.rows.code is not None or heads.rows.kept is not None:
                return "products with positions of codes, or of a part of the heads"
        if not terms or not scores.scale:
            return "a scale of 0 beside products with positions" if terms else None
        return self._walk.relative.read(terms, scores.scale)


def _kernel(walk: Walk, parts: list[Heads]) -> str | None:
    """The kernel for these query, key and value; None if there is none."""
    coded = [part.rows.code is not None for part in parts]
    if not any(coded):
        return "attention"
    return _int8_attention(walk) if coded == [True, True, False] else None


def _words(scores: Scores, v: Heads, heads: int, target: Buffer) -> dict[str, Word]:
    """Words of an attention, before what distances add."""
    q, k = scores.query, scores.key
    words: dict[str, Word] = {
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
    if q.rows.code is not None and k.rows.code is not None:
        words["scale"] = scores.scale * q.rows.code[0] * k.rows.code[0]
        words["q_zero"] = q.rows.code[1]
    return words


def by_distance(steps: Sequence[Step]) -> list[Step]:
    """Steps where every attention knows hidden keys, if one does.

    A plan that asks for distances keeps padding between real tokens in its place.
    """
    if not any("distances" in step.words for step in steps):
        return list(steps)
    kernels = [catalog.other(kind) for kind in ("attention", "attention_i8", "attention_amx")]
    return [_with_table(step, NOTHING) if step.kernel in kernels else step for step in steps]


def _with_table(step: Step, table: DistanceTable, heads: NDArray[np.intp] | None = None) -> Step:
    """An attention that adds a table, of all heads or of some."""
    values = table.of(heads)
    words: dict[str, Word] = {
        **step.words,
        "distances": values,
        "distance_step": 0 if len(values) == 1 else values.strides[0],
        "distance_zero": table.zero,
        "distance_last": values.shape[1] - EDGE,
        "before": table.before,
        "after": table.after,
    }
    if table.longest is not None:
        words["longest"] = table.longest
    return replace(step, kernel=catalog.attention_by_distance(step.kernel.kind), words=words)


def _with_positions(step: Step, tables: PositionTables) -> Step:
    """An attention by distance that also adds products with positions."""
    of_queries, of_keys = tables.of_queries, tables.of_keys
    (known, *_) = [t for t in (of_queries, of_keys) if t is not None]
    words: dict[str, Word] = {
        **step.words,
        "position_step": known.strides[0],
        "position_zero": tables.zero,
        "position_last": known.shape[1] - 1,
    }
    if of_queries is not None:
        words["of_queries"] = of_queries
    if of_keys is not None:
        words["of_keys"] = of_keys
    if tables.longest is not None:
        words["longest"] = min(tables.longest, int(words.get("longest", tables.longest)))  # type: ignore[arg-type]  # an int
    kinds = {"of_queries": of_queries is not None, "of_keys": of_keys is not None}
    return replace(step, kernel=catalog.attention_by_position(**kinds), words=words)


def _int8_attention(walk: Walk) -> str:
    """The faster of the kernels that multiply codes; their results are the same bits."""
    if not walk.isa.has_tiles:
        return "attention_i8"
    rates = walk.rates
    return "attention_amx" if rates.attention_tiles < rates.attention else "attention_i8"
