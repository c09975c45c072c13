"""EncoderStructure: the layers of an encoder, found by dataflow and never by module names.

An attention core (fused, or softmax between two products) is the anchor. Behind it lie the q, k and
v linears, after it the output linear; the residual addition after that leads to the feed-forward
linears, and the second residual addition (with its norm, when the norm comes after) is the hidden
state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import networkx as nx
import torch
from torch import fx

from sparsefx.analysis import Analysis
from sparsefx.errors import PassError
from sparsefx.joined import TEACHER_PREFIX
from sparsefx.passbase import Skip
from sparsefx.passes.analyses.attention import (
    AttentionCore,
    NoCore,
    find_attention,
    linears_behind,
)
from sparsefx.passes.analyses.dataflow import (
    data_graph,
    is_linear,
    is_norm,
    next_nodes,
    origin,
    passes_on,
    weight_of,
)
from sparsefx.passes.analyses.roles import Role, roles_of

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = [
    "Encoder",
    "EncoderLayer",
    "EncoderStructure",
    "LinearSite",
]

aten = torch.ops.aten


@dataclass(frozen=True)
class LinearSite:
    """One use of a linear: its node, and the names of its tensors.

    ``weight`` is the stored tensor ``[out, in]``, behind masks, fake quantization or dequantize.
    """

    node: fx.Node
    weight: str
    bias: str | None


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer.

    Attributes:
        index: 0 for the layer next to the embeddings.
        input: The stream that enters: the embedding output or the previous layer's ``hidden``.
        q: Query linear; q, k and v are the same site when they are fused (see ``fused``).
        k: Key linear.
        v: Value linear.
        output: The linear after attention.
        up: The linears that widen: one, or gate and up; a fused gate is one.
        down: The linear that narrows.
        position: Further linears behind the scores: DeBERTa's projected relative positions.
        core: The attention: scores, probabilities, query, key, value, heads, ...
        hidden: Second residual addition, or the norm after it where norms come after
            (``[batch, sequence, hidden]``; before a final norm of the whole encoder).
        norm: ``"post"`` when the norm follows the addition (BERT), ``"pre"`` when it stands before
            attention (ModernBERT).
    """

    index: int
    input: fx.Node
    q: LinearSite
    k: LinearSite
    v: LinearSite
    output: LinearSite
    up: tuple[LinearSite, ...]
    down: LinearSite
    position: tuple[LinearSite, ...]
    core: AttentionCore
    hidden: fx.Node
    norm: Literal["pre", "post"]

    @property
    def fused(self) -> bool:
        """Whether one linear makes q, k and v."""
        return self.q.node is self.k.node

    @property
    def linears(self) -> tuple[LinearSite, ...]:
        """All linears of the layer, each node once, in graph order."""
        sites = (self.q, self.k, self.v, *self.position, self.output, *self.up, self.down)
        return tuple({site.node: site for site in sites}.values())


@dataclass(frozen=True)
class Encoder:
    """What the analysis found.

    Attributes:
        layers: From the embeddings upwards; empty when the graph is no encoder.
        reason: Why there are no layers; empty when there are.
        skipped: Attention that is not part of a layer that was understood, each with the reason.
        attention_mask: Name of the input that says which tokens are padding, if there is one.
        roles: Role of every weight of a linear or embedding, by tensor name.
    """

    layers: tuple[EncoderLayer, ...]
    reason: str
    skipped: tuple[Skip, ...]
    attention_mask: str | None
    roles: dict[str, Role]

    def require(self, who: str) -> tuple[EncoderLayer, ...]:
        """Return the layers.

        Raises:
            PassError: When the graph is no encoder; says why it was not taken for one.
        """
        if not self.layers:
            raise PassError(
                f"this is not an encoder that sparsefx understands: {self.reason}",
                who=who,
                hint="the graph needs self-attention followed by a feed-forward block, each added "
                "to its input; 'sparsefx inspect' prints the graph",
            )
        return self.layers


class EncoderStructure(Analysis[Encoder]):
    """Finds the layers of an encoder; see :class:`Encoder`."""

    @classmethod
    def compute(cls, program: Program) -> Encoder:
        """Return layers, roles and the reasons for what was not understood."""
        layers: list[EncoderLayer] = []
        skipped: list[Skip] = []
        attending: set[fx.Node] = set()
        for core in find_attention(program.graph):
            attending |= set() if isinstance(core, NoCore) else _around(core)
            found = core.reason if isinstance(core, NoCore) else _layer(core, len(layers))
            if isinstance(found, str):
                skipped.append(Skip(f"%{core.context.name}", found))
            elif not found.v.weight.startswith(TEACHER_PREFIX):
                layers.append(found)
        flow = data_graph(program.graph)
        first, last = _ends(layers)
        return Encoder(
            tuple(layers),
            "" if layers else _why_none(skipped),
            tuple(skipped),
            _attention_mask(layers, flow),
            roles_of(program.graph, flow, first, last, _members(attending, flow, first)),
        )


def _why_none(skipped: list[Skip]) -> str:
    if skipped:
        return str(skipped[0])
    return (
        "it has no attention (neither scaled_dot_product_attention nor a softmax between "
        "two matrix products)"
    )


def _layer(core: AttentionCore, index: int) -> EncoderLayer | str:
    """Return the layer around an attention core, or the reason why there is none."""
    outputs = next_nodes(core.context, is_linear, through=passes_on)
    if len(outputs) != 1:
        return f"{len(outputs)} linears follow the attention, expected one"
    attended = _residual(outputs[0])
    if attended is None:
        return f"the output %{outputs[0].name} is not added to the layer's input"
    ups = next_nodes(attended[0], is_linear, through=lambda node: _operands(node) is None)
    downs = sorted({n for up in ups for n in next_nodes(up, is_linear)[:1]})
    if len(ups) not in (1, 2) or len(downs) != 1:
        return f"no feed-forward block follows %{attended[0].name}"
    added = _residual(downs[0])
    if added is None:
        return f"the feed-forward output %{downs[0].name} is not added to its input"
    before = origin(added[1]) is attended[0]
    sites = {node: _site(node) for node in (core.q, core.k, core.v, outputs[0], *ups, *downs)}
    known = {node: site for node, site in sites.items() if site is not None}
    if len(known) != len(sites):
        return "a linear of the layer has a computed weight"
    behind = [_site(n) for n in linears_behind(core.scores or core.query) if n not in known]
    return EncoderLayer(
        index=index,
        input=attended[1],
        q=known[core.q],
        k=known[core.k],
        v=known[core.v],
        output=known[outputs[0]],
        up=tuple(known[up] for up in ups),
        down=known[downs[0]],
        position=tuple(site for site in behind if site is not None),
        core=core,
        hidden=added[0] if before else _normed(added[0]),
        norm="pre" if before else "post",
    )


def _around(core: AttentionCore) -> set[fx.Node]:
    """Return the linears before and behind an attention, be it part of a layer or not."""
    return {core.q, core.k, core.v, *next_nodes(core.context, is_linear, through=passes_on)}


def _members(
    attending: set[fx.Node], flow: nx.DiGraph[fx.Node], first: fx.Node | None
) -> set[fx.Node]:
    """Return the linears of the encoder that may lie outside of its layers; none without layers.

    Those of all attention, and those of feed-forward blocks before the first attention, which are
    added to what they read as all blocks of an encoder are; what projects an embedding is not.
    """
    if first is None:
        return set()
    members = set(attending)
    for down in (node for node in nx.ancestors(flow, first) if is_linear(node)):
        added = _residual(down)
        if added is None:
            continue
        read = {added[1], *nx.descendants(flow, added[1])}
        ups = [up for up in linears_behind(down.all_input_nodes[0]) if up in read]
        members |= {down, *ups} if ups else set()
    return members


def _site(node: fx.Node) -> LinearSite | None:
    weight = weight_of(node)
    if weight is None:
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    name = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    return LinearSite(node, weight, name)


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return what is added when ``node`` is an addition of two activations."""
    if node.target not in (aten.add.Tensor, aten.add_.Tensor):
        return None
    left, right = node.args[:2]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    if origin(left).op == "get_attr" or origin(right).op == "get_attr":
        return None
    return left, right


def _residual(output: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the addition that ``output`` flows into, and what it is added to."""
    additions = next_nodes(output, lambda node: _operands(node) is not None, through=passes_on)
    if len(additions) != 1:
        return None
    left, right = _operands(additions[0]) or (output, output)
    return additions[0], left if origin(right) is output else right


def _normed(addition: fx.Node) -> fx.Node:
    """Return the norm that follows an addition, or the addition itself."""
    norms = next_nodes(addition, is_norm, through=passes_on)
    return norms[0] if norms else addition


def _ends(layers: list[EncoderLayer]) -> tuple[fx.Node, fx.Node] | tuple[None, None]:
    return (layers[0].input, layers[-1].hidden) if layers else (None, None)


def _attention_mask(layers: list[EncoderLayer], flow: nx.DiGraph[fx.Node]) -> str | None:
    """Return the one input that reaches the scores of layer 0 without passing the layer."""
    if not layers:
        return None
    first = layers[0]
    target = first.core.mask if first.core.sdpa is not None else first.core.scores
    if target is None:
        return None
    outside = flow.copy()
    outside.remove_nodes_from({first.q.node, first.k.node, *(s.node for s in first.position)})
    inputs = [n for n in nx.ancestors(outside, target) if n.op == "placeholder"]
    return str(inputs[0].target) if len(inputs) == 1 else None
