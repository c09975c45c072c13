"""decompose-attention: fused attention becomes products and a softmax that one can look into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import fx

from sparsefx.graph.effects import shared_with_writes
from sparsefx.graph.ops import dropout_rate
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.properties import Property
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["DecomposeAttention"]

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """Spell ``scaled_dot_product_attention`` as matmul, scale, mask, softmax, dropout, matmul.

        S = Q K^T * scale + M        scale = 1 / sqrt(head size) unless the node gives one
        Y = dropout(softmax(S)) V    dropout follows train() and eval()

    M is the float mask; for a boolean mask (True: may be seen) it is 0 where True and the smallest
    float32 where False, made once for all layers that share the mask; for ``is_causal`` likewise
    with a triangle. This is how Hugging Face's eager attention is spelled, so that what
    recognises the one recognises the other (source: the reference code in the documentation of
    ``torch.nn.functional.scaled_dot_product_attention``).

    A row in which all is masked (a padded token with a local window) becomes uniform, as in eager
    attention, where fused attention returns 0. No unmasked token sees such a row.
    ``empty_rows='zero'`` keeps the 0, with ``aten._safe_softmax``, which fewer targets know.

    Establishes ``explicit-attention``. Attention that is explicit already is left as it is.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> q, k, v = torch.randn(3, 1, 2, 3, 4)
    >>> attend = torch.nn.functional.scaled_dot_product_attention
    >>> before = small_program(lambda q, k, v: attend(q, k, v), q=q, k=k, v=v)
    >>> print(graph_text(Pipeline.parse("decompose-attention").run(before)))
    %transpose = aten.transpose.int(%k, -2, -1)
    %matmul = aten.matmul(%q, %transpose)
    %mul = aten.mul.Tensor(%matmul, 0.5)
    %softmax = aten.softmax.int(%mul, -1)
    %matmul_1 = aten.matmul(%softmax, %v)
    return {output: %matmul_1}
    <BLANKLINE>
    """

    name: ClassVar[str] = "decompose-attention"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.EXPLICIT_ATTENTION})

    empty_rows: Literal["uniform", "zero"] = "uniform"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Spell out every fused attention."""
        nodes = list(program.graph.find_nodes(op="call_function", target=_SDPA))
        biases: dict[fx.Node, fx.Node] = {}
        written = shared_with_writes(program.graph)
        for node in nodes:
            _spell(node, ctx.rewriter, biases, zero=self.empty_rows == "zero")
            for mask in biases.keys() & written:  # it is another mask where the next layer reads it
                del biases[mask]
        return PassReport(len(nodes))


@dataclass(frozen=True)
class _Arguments:
    """The arguments of one fused attention, defaults filled in."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    dropout: fx.Node | float
    is_causal: bool
    scale: float
    grouped: bool

    @classmethod
    def of(cls, node: fx.Node) -> _Arguments:
        """Read them from a node."""
        names = [argument.name for argument in _SDPA._schema.arguments]
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        query = given["query"]
        scale = given.get("scale")
        return cls(
            query,
            given["key"],
            given["value"],
            given.get("attn_mask"),
            given.get("dropout_p", 0.0),
            given.get("is_causal", False),
            scale if scale is not None else 1.0 / math.sqrt(query.meta["val"].shape[-1]),
            given.get("enable_gqa", False),
        )


def _spell(node: fx.Node, rw: Rewriter, biases: dict[fx.Node, fx.Node], *, zero: bool) -> None:
    given = _Arguments.of(node)
    key, value = given.key, given.value
    with rw.before(node):
        if given.grouped:
            key, value = _repeat_heads(rw, key, given.query), _repeat_heads(rw, value, given.query)
        bias = _bias(rw, given, biases, zero=zero)
        product = rw.call(
            aten.matmul.default, given.query, rw.call(aten.transpose.int, key, -2, -1)
        )
        scores = rw.call(aten.mul.Tensor, product, given.scale)
        if bias is not None:
            scores = rw.call(aten.add.Tensor, scores, bias)
        softmax = aten._safe_softmax.default if zero else aten.softmax.int
        shares = _drop(rw, rw.call(softmax, scores, -1), given.dropout)
        result = rw.call(aten.matmul.default, shares, value)
    rw.replace(node, result)
    if isinstance(given.dropout, fx.Node) and not given.dropout.users:
        rw.erase(given.dropout)


def _drop(rw: Rewriter, shares: fx.Node, dropout: fx.Node | float) -> fx.Node:
    if isinstance(dropout, fx.Node) and dropout.target is dropout_rate:
        return rw.call(aten.dropout.default, shares, *dropout.args)
    if isinstance(dropout, fx.Node) or dropout > 0.0:
        return rw.call(aten.dropout.default, shares, dropout, True)
    return shares


def _repeat_heads(rw: Rewriter, node: fx.Node, query: fx.Node) -> fx.Node:
    times = query.meta["val"].shape[-3] // node.meta["val"].shape[-3]
    return rw.call(aten.repeat_interleave.self_int, node, int(times), -3)


def _bias(
    rw: Rewriter, given: _Arguments, biases: dict[fx.Node, fx.Node], *, zero: bool
) -> fx.Node | None:
    """Return what is added to the scores, or None; made once for each boolean mask."""
    mask = given.mask
    if given.is_causal:
        sizes = [rw.call(aten.sym_size.int, node, -2) for node in (given.query, given.key)]
        ones = rw.call(aten.new_ones.default, given.query, sizes, dtype=torch.bool)
        mask = rw.call(aten.tril.default, ones)
    if mask is None or mask.meta["val"].dtype is not torch.bool:
        return mask
    if mask not in biases:  # made where it is first read: until then a graph may write to it
        biases[mask] = _as_bias(rw, mask, given.query.meta["val"].dtype, zero=zero)
    return biases[mask]


def _as_bias(rw: Rewriter, mask: fx.Node, dtype: torch.dtype, *, zero: bool) -> fx.Node:
    # float32 whatever the query is at run time: under autocast to bfloat16 the smallest float32
    # would round to -inf, and a row in which all is masked to NaN.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    bias = rw.call(aten.where.Scalar, mask, 0.0, -math.inf if zero else lowest)
    return bias if dtype is torch.float32 else rw.call(aten.to.dtype, bias, dtype)
