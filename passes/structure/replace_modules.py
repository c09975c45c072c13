"""replace-modules: small modules stand in for large ones, by chance and ever more often."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import networkx as nx
import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.dataflow import whole_graph
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure
from sparsefx.passes.structure.drop_layers import chosen_layers
from sparsefx.properties import Property
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["DRAW", "RATE", "SUCCESSOR_PREFIX", "ReplaceModules"]

aten = torch.ops.aten

DRAW = torch.ops.sparsefx.draw.default
RATE = "replacing.rate"
SUCCESSOR_PREFIX = "successor."


@dataclass(frozen=True)
class ReplaceModules(Pass):
    """Put one new layer beside every few layers, and let chance decide which of the two runs.

    The n layers are cut into k modules of n / k layers. The successor of module i is a copy of
    layer i. For every batch and module, with probability p after t steps,

        y = successor(x) if drawn else module(x)        p(t) = min(1, p_0 + (1 - p_0) t / end)

    and in evaluation always the successor: BERT-of-Theseus (Xu et al. 2020, sections 3.2 and 3.3).
    Only the successors are to be trained: freeze everything but ``successor.`` in the recipe.
    ``take-successors`` leaves them alone.

    Establishes nothing. Both branches are computed and one is chosen, so a step costs what both
    cost. Skips a graph without encoder layers, and one whose layers cannot be cut evenly.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder()
    >>> trained = Pipeline.parse("replace-modules{rate=0.3,end=100}").run(program)
    >>> trained.history[-1].notes, float(trained.tensor("replacing.rate"))
    (('1 successor for 2 layers',), 0.30000001192092896)

    Attributes:
        fraction: Successors for each layer, k / n; above 0 and below 1.
        rate: p_0, the probability at the beginning.
        end: Step at which p reaches 1; 0 keeps it at ``rate``.
        start: Step of the Program at which t is 0; None: where the pass runs.
    """

    name: ClassVar[str] = "replace-modules"
    forbids: ClassVar[frozenset[Property]] = frozenset(
        {Property.DISTILLING, Property.MASKED, Property.QUANT_PREPARED, Property.QUANTIZED}
    )
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})

    fraction: float = 0.5
    rate: float = 0.5
    end: int = 0
    start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.fraction < 1.0:
            raise self.refuse("fraction", "expected a share between 0 and 1")
        if not 0.0 <= self.rate <= 1.0:
            raise self.refuse("rate", "expected a probability")
        if self.end < 0:
            raise self.refuse("end", "expected a step >= 0")

    @property
    def last_step(self) -> int:
        """Where the rate reaches 1."""
        return self.end

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add the successors, the draws and the choices."""
        if program.graph.find_nodes(op="call_function", target=DRAW):
            return PassReport(0, (Skip("layers", "they have successors already"),))
        found = program.facts(EncoderStructure)
        if not found.layers:
            return PassReport(0, (Skip("layers", found.reason),))
        total = len(found.layers)
        count = len(chosen_layers(total, self.fraction, "first"))
        if total % count or total == count:
            why = f"{total} layers cannot be cut into {count} modules of equal size"
            return PassReport(0, (Skip("layers", why),))
        rate = ctx.rewriter.add_buffer(RATE, torch.tensor(float(self.rate)))
        _Builder(ctx.rewriter, found.layers, total // count, rate).build()
        start = program.steps if self.start is None else self.start
        program.active = (*program.active, dataclasses.replace(self, start=start))
        noun = "successor" if count == 1 else "successors"
        return PassReport(count, notes=(f"{count} {noun} for {total} layers",))

    @torch.no_grad()
    def after_step(self, program: Program, step: int) -> None:
        """Move the rate on."""
        if self.end:
            gone = min(1.0, (step - (self.start or 0)) / self.end)
            program.tensor(RATE).fill_(self.rate + (1.0 - self.rate) * gone)


class _Builder:
    """Builds one successor after the other, from the embeddings upwards."""

    def __init__(
        self, rw: Rewriter, layers: tuple[EncoderLayer, ...], size: int, rate: fx.Node
    ) -> None:
        self.rw, self.layers, self.size, self.rate = rw, layers, size, rate
        self.templates = [_inside(layer) for layer in layers[: len(layers) // size]]
        self.chosen: dict[fx.Node, fx.Node] = {}
        self.tensors: dict[fx.Node, fx.Node] = {}
        self.mode = rw.training()

    def build(self) -> None:
        for index, template in enumerate(self.templates):
            module = self.layers[index * self.size : (index + 1) * self.size]
            entry, end = self._now(module[0].input), module[-1].hidden
            with self.rw.after(end):
                copied = self._copy(template, {self._now(self.layers[index].input): entry})
                drawn = self.rw.call(DRAW, self.rate, self.mode)
                ours = copied[self.layers[index].hidden]
                chosen = self.rw.call(aten.where.self, drawn, ours, end)
            self.rw.replace(end, chosen, erase=False)
            self.chosen[end] = chosen

    def _now(self, node: fx.Node) -> fx.Node:
        """Return what stands for a layer's output by now."""
        return self.chosen.get(node, node)

    def _copy(self, nodes: list[fx.Node], copied: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        for node in nodes:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda arg: self._inner(arg, copied)
            )
            target: Any = node.target
            copied[node] = self.rw.call(target, *args, **kwargs)
        return copied

    def _inner(self, arg: fx.Node, copied: dict[fx.Node, fx.Node]) -> fx.Node:
        if arg in copied:
            return copied[arg]
        if arg.op != "get_attr":
            return arg
        if arg not in self.tensors:  # layers that share a tensor have successors that do
            self.tensors[arg] = self._copy_tensor(arg)
        return self.tensors[arg]

    def _copy_tensor(self, arg: fx.Node) -> fx.Node:
        tensor = self.rw.program.tensor(str(arg.target))
        name = f"{SUCCESSOR_PREFIX}{arg.target}"
        value = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            return self.rw.add_parameter(name, value)
        return self.rw.add_buffer(name, value)


def _inside(layer: EncoderLayer) -> list[fx.Node]:
    """Return the nodes of a layer in order: behind its output, and computed from its input."""
    flow = whole_graph(layer.hidden.graph)
    behind: set[fx.Node] = nx.descendants(flow, layer.input)
    before: set[fx.Node] = nx.ancestors(flow, layer.hidden)
    found = behind & before
    if any(node.op != "call_function" for node in found):
        raise PassError(
            "a layer holds more than calls", who="replace-modules", where=f"layer {layer.index}"
        )
    return sorted({*found, layer.hidden})
