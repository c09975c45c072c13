"""shrink-width: an encoder with fewer hidden features, everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, fx

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.dataflow import is_linear, is_norm
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure
from sparsefx.passes.structure.head_axes import HeadAxes, trace_heads
from sparsefx.passes.structure.hidden_stream import HiddenStream, trace_hidden
from sparsefx.properties import BOUND_TO_SHAPES, Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["ShrinkWidth"]

aten = torch.ops.aten

_WIDTHS = ("hidden_size", "dim")
_DEVIATION = 0.02  # of BERT's first weights

Cuts = dict[str, dict[int, Tensor]]
"""What stays of tensors: by name and dimension, the indices in ascending order."""


@dataclass(frozen=True)
class ShrinkWidth(Pass):
    """Takes hidden features out of a whole encoder: the student of TinyBERT is as narrow as that.

    Tables of embeddings, norms, the inputs and outputs of all layers, pooler and heads for tasks
    lose the same features; every attention head loses as large a share of its own, and so there
    are as many heads as before, which attention terms of ``distill`` need. Features stay whose
    weights are largest, in a head those with the largest |q_i| |k_i| and |v_i| |o_i|:

        H' = heads * D',   D' = round(ratio * D)                312 = 12 * 26 of 768 = 12 * 64

    What is left has to be taught anew: ``distill`` lays a projection between hidden states of
    different widths. Combine it with ``drop-layers`` and ``prune-neurons``. Run it before
    ``decompose-attention``.

    Establishes nothing. Skips everything, with the reason, when one layer cannot shrink: attention
    that is spelled out (its scale is a number), rotary positions, one linear for query, key and
    value, operators that are not known to keep hidden features.

    >>> import torch
    >>> from sparsefx import Pipeline, capture
    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2,
    ...                     num_attention_heads=2, intermediate_size=16)
    >>> program = capture(BertModel(config).eval(), {"input_ids": torch.ones(2, 4).long()})
    >>> small = Pipeline.parse("shrink-width{ratio=0.5}").run(program)
    >>> small.config["hidden_size"]
    8
    >>> tuple(small.tensor("encoder.layer.1.attention.self.query.weight").shape)
    (8, 8)

    Attributes:
        ratio: Share of the features that stay, above 0 and below 1.
        weights: ``largest``: of those that were there; ``random``: all weights are drawn anew, as
            in the paper (normal with deviation 0.02; norms and biases as they begin). A vector that
            is neither keeps its values, and is reported.
        seed: Of the draw.
    """

    name: ClassVar[str] = "shrink-width"
    reshapes: ClassVar[bool] = True
    changes_signature: ClassVar[bool] = True
    forbids: ClassVar[frozenset[Property]] = BOUND_TO_SHAPES

    ratio: float = 0.40625
    weights: Literal["largest", "random"] = "largest"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.ratio < 1.0:
            raise self.refuse("ratio", "expected a share above 0, below 1")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Find all that holds hidden features, choose, and cut."""
        found = program.facts(EncoderStructure)
        if not found.layers:
            return PassReport(0, (Skip("layers", found.reason),))
        stream = trace_hidden(program, found.layers)
        heads = [trace_heads(layer) for layer in found.layers]
        skipped = [
            Skip(f"layer {layer.index}", why)
            for layer, axes in zip(found.layers, heads, strict=True)
            if (why := _unfit(layer, axes))
        ]
        skipped += [Skip("hidden states", stream.reason)] * bool(stream.reason)
        size = heads[0].size
        smaller = max(1, round(size * self.ratio))
        if smaller == size:
            skipped.append(Skip("hidden states", f"all {size} features of a head stay"))
        if skipped:
            return PassReport(0, tuple(skipped))
        width = stream.width * smaller // size
        cuts = _of_heads(program, found.layers, smaller)
        _add_hidden(program, stream, width, cuts)
        _apply(ctx.rewriter, cuts)
        _resize(program, ctx.rewriter, stream, heads, (width, smaller))
        kept = _draw(program, self.seed) if self.weights == "random" else []
        _configure(program, stream, width)
        note = f"{width} of {stream.width} hidden features stay, {smaller} of {size} in each head"
        return PassReport(len(found.layers), tuple(kept), (note,))


def _unfit(layer: EncoderLayer, axes: HeadAxes) -> str:
    """Return why a layer cannot shrink; empty when it can."""
    if layer.core.sdpa is None:
        return "its attention is spelled out; run this before decompose-attention"
    if layer.fused:
        return "one linear makes query, key and value"
    if layer.v.weight in (layer.q.weight, layer.k.weight):
        return f"{layer.v.weight} makes values too, of which other features are to stay"
    return axes.reason or axes.fixed


@torch.no_grad()
def _of_heads(program: Program, layers: Sequence[EncoderLayer], size: int) -> Cuts:
    """Return which rows of q, k and v stay, and which columns of the output linear."""
    cuts: Cuts = {}
    for layer in layers:
        heads = layer.core.heads
        q, k, v, o = (
            program.tensor(site.weight) for site in (layer.q, layer.k, layer.v, layer.output)
        )
        matched = _largest(q.norm(dim=1) * k.norm(dim=1), heads, size)
        carried = _largest(v.norm(dim=1) * o.norm(dim=0), heads, size)
        rows = [(name, matched) for site in (layer.q, layer.k) for name in (site.weight, site.bias)]
        rows += [(name, carried) for name in (layer.v.weight, layer.v.bias)]
        cuts.update({name: {0: kept} for name, kept in rows if name is not None})
        cuts.setdefault(layer.output.weight, {})[1] = carried
    return cuts


def _largest(scores: Tensor, heads: int, size: int) -> Tensor:
    """Return the features of each head with the largest scores, ascending."""
    apart = scores.reshape(heads, -1)
    kept = apart.topk(size).indices.sort().values
    starts = torch.arange(heads, device=scores.device) * apart.shape[1]
    return (kept + starts[:, None]).flatten()


@torch.no_grad()
def _add_hidden(program: Program, stream: HiddenStream, width: int, cuts: Cuts) -> None:
    """Choose the hidden features with the largest weights in all matrices together."""
    total = torch.zeros(stream.width)
    for name, dims in stream.cuts.items():
        tensor = program.tensor(name)
        for dim in dims:
            if tensor.dim() == 2:
                total += tensor.square().sum(1 - dim).float().cpu()
    kept = total.topk(width).indices.sort().values
    for name, dims in stream.cuts.items():
        for dim in dims:
            cuts.setdefault(name, {})[dim] = kept


@torch.no_grad()
def _apply(rewriter: Rewriter, cuts: Cuts) -> None:
    for name, dims in cuts.items():
        tensor = rewriter.program.tensor(name)
        for dim, kept in dims.items():
            tensor = tensor.index_select(dim, kept.to(tensor.device))
        rewriter.set_tensor(name, tensor.contiguous())


def _resize(
    program: Program,
    rewriter: Rewriter,
    stream: HiddenStream,
    heads: Sequence[HeadAxes],
    sizes: tuple[int, int],
) -> None:
    """Write the new sizes into the arguments, and infer all shapes anew."""
    width, size = sizes
    owner = {node: axes for axes in heads for node in axes.nodes}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        args, kwargs = list(node.args), dict(node.kwargs)
        if node in owner:
            args = owner[node].arguments(node, owner[node].heads, size)
            if isinstance(scale := kwargs.get("scale"), float):  # 1 / sqrt(features of a head)
                kwargs["scale"] = scale * math.sqrt(owner[node].size / size)
        rewriter.set_args(node, *stream.arguments(node, args, width), **kwargs)


def _configure(program: Program, stream: HiddenStream, width: int) -> None:
    """Write the width into the configuration, also as that of tables which became narrower."""
    keys = [key for key in _WIDTHS if key in program.config]
    tables = program.graph.find_nodes(op="call_function", target=aten.embedding.default)
    narrower = any(_table(node) in stream.cuts for node in tables)
    if narrower and program.config.get("embedding_size") == stream.width:
        keys.append("embedding_size")
    program.config.update(dict.fromkeys(keys, width))


def _table(embedding: fx.Node) -> str:
    table = embedding.args[0]
    return str(table.target) if isinstance(table, fx.Node) else ""


@torch.no_grad()
def _draw(program: Program, seed: int) -> list[Skip]:
    """Begin training from nothing; return the parameters that begin in no known way."""
    generator = torch.Generator().manual_seed(seed)
    begins, skipped = _beginnings(program), []
    for name, parameter in sorted(program.module.named_parameters()):
        if name in begins:
            parameter.fill_(begins[name])
        elif parameter.dim() > 1:
            drawn = torch.empty(parameter.shape).normal_(0.0, _DEVIATION, generator=generator)
            parameter.copy_(drawn)
        else:
            why = "it is neither scale of a norm nor bias, and keeps its values"
            skipped.append(Skip(name, why))
    return skipped


def _beginnings(program: Program) -> dict[str, float]:
    """Return what norms and biases begin with, by name."""
    found: dict[str, float] = {}
    for node in program.graph.nodes:
        values = (1.0, 0.0) if is_norm(node) else (0.0,) if is_linear(node) else ()
        for tensor, value in zip(node.args[2:4], values, strict=False):
            if isinstance(tensor, fx.Node) and tensor.op == "get_attr":
                found[program.canonical(str(tensor.target))] = value
    return found
