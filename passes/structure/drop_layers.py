"""drop-layers: an encoder loses whole layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import networkx as nx
from torch import fx

from sparsefx.errors import PassError
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.dataflow import whole_graph
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure
from sparsefx.passes.structure.layer_names import (
    layer_prefix,
    only_in,
    set_layer_count,
    take_numbers,
)
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["DropLayers", "chosen_layers"]

Choice = Literal["first", "last", "spread"]


@dataclass(frozen=True)
class DropLayers(Pass):
    """Keep some layers of an encoder and join them; the others are removed with their tensors.

    What enters a dropped layer goes to the next one. The layers that stay are numbered anew, in the
    names of their tensors and in the configuration, so that the result saves as a plain Hugging
    Face folder; a note says where it may not, as without layer 0 of ModernBERT. They start from the
    weights they had; which those are is what the methods differ in: BERT-PKD takes the first (Sun
    et al. 2019), DistilBERT spreads them, 0, 2, 4, 7, 9, 11 of 12 (Sanh et al. 2019).

    Establishes nothing. Skips a graph without encoder layers, and one where all are kept.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder(num_hidden_layers=3)
    >>> small = Pipeline.parse("drop-layers{keep=(0,2)}").run(program)
    >>> small.config["num_hidden_layers"], small.history[-1].notes
    (2, ('kept the layers 0, 2 of 3',))

    Attributes:
        fraction: Share of the layers to keep, above 0 and below 1; at least one is kept.
        choice: Which: the ``first`` ones, the ``last`` ones, or ``spread`` from first to last.
        keep: The layers to keep, counted from 0, ascending; overrules the other two.

    Raises:
        PassError: Something besides the next layers reads a dropped one, as ``loss.l1`` of
            ``reweighted-l1`` does.
    """

    name: ClassVar[str] = "drop-layers"
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.DISTILLING})

    fraction: float = 0.5
    choice: Choice = "first"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = (self.keep,) if isinstance(self.keep, int) else tuple(self.keep)
        object.__setattr__(self, "keep", kept)
        if not 0.0 < self.fraction < 1.0:
            raise self.refuse("fraction", "expected a share between 0 and 1")
        if list(kept) != sorted(set(kept)) or any(index < 0 for index in kept):
            raise self.refuse("keep", "expected layers in ascending order, counted from 0")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Join around the dropped layers, remove them, and number the rest anew."""
        found = program.facts(EncoderStructure)
        layers = found.layers
        if not layers:
            return PassReport(0, (Skip("layers", found.reason),))
        kept = self.keep or chosen_layers(len(layers), self.fraction, self.choice)
        if kept[-1] >= len(layers):
            raise self.refuse("keep", f"the encoder has {len(layers)} layers")
        dropped = [layer for layer in layers if layer.index not in kept]
        if not dropped:
            return PassReport(0, (Skip("layers", "all of them are kept"),))
        told = tuple(_told_apart(program, layers, kept))
        for layer in reversed(dropped):
            _remove(layer, ctx.rewriter)
        _check_gone(program, dropped, layers[kept[-1]].hidden)
        skipped = take_numbers(ctx.rewriter, layers, kept)
        set_layer_count(program, kept)
        note = f"kept the layers {', '.join(map(str, kept))} of {len(layers)}"
        return PassReport(len(dropped), skipped, (note, *told))


def chosen_layers(count: int, fraction: float, choice: Choice) -> tuple[int, ...]:
    """Return which of ``count`` layers stay.

    >>> chosen_layers(12, 0.5, "spread"), chosen_layers(6, 0.5, "last")
    ((0, 2, 4, 7, 9, 11), (3, 4, 5))
    """
    kept = max(1, round(count * fraction))
    if choice == "first" or kept == 1:
        return tuple(range(kept))
    if choice == "last":
        return tuple(range(count - kept, count))
    return tuple(round(index * (count - 1) / (kept - 1)) for index in range(kept))


def _told_apart(
    program: Program, layers: Sequence[EncoderLayer], kept: Sequence[int]
) -> Iterator[str]:
    """Say which layers have weights that a model has not where they will stand."""
    for new, old in enumerate(kept):
        if names := only_in(program, layers[old], layers[new]):
            yield (
                f"layer {old} has {', '.join(names)}, and layer {new}, whose place it takes, has "
                "not: a Hugging Face folder may have no room for that"
            )


def _remove(layer: EncoderLayer, rewriter: Rewriter) -> None:
    prefix = layer_prefix(layer)
    rewriter.replace(layer.hidden, layer.input, erase=False)
    writers = [  # observers, which nothing reads
        user
        for node in _tensors(rewriter.program, prefix)
        for user in node.users
        if user.op == "call_function" and not user.users
    ]
    rewriter.erase_unused([layer.hidden, *writers])
    for node in _tensors(rewriter.program, prefix):
        if not node.users:  # what a pass keeps for it
            rewriter.remove_tensor(str(node.target))


def _tensors(program: Program, prefix: str | None) -> list[fx.Node]:
    """Return the nodes that read tensors of a layer; none where its number is not in the names."""
    reads = program.graph.find_nodes(op="get_attr")
    return [node for node in reads if prefix is not None and str(node.target).startswith(prefix)]


def _check_gone(program: Program, dropped: Sequence[EncoderLayer], last: fx.Node) -> None:
    """Refuse to drop what something besides the layers that stay goes on to read.

    Layers may share what one of them holds, as the biases by distance of T5.
    """
    flow = whole_graph(program.graph)
    for layer in dropped:
        for node in _tensors(program, layer_prefix(layer)):
            behind = nx.descendants(flow, node)
            if last in behind:
                continue
            found = program.outputs().items()
            outputs = ", ".join(sorted(name for name, output in found if output in behind))
            without = f", or keep-outputs{{outputs=...}} without {outputs}" if outputs else ""
            raise PassError(
                f"%{min(node.users).name} reads a tensor of layer {layer.index}, which is dropped",
                who=DropLayers.name,
                where=str(node.target),
                hint=f"run drop-layers before the pass that lets it be read{without}",
            )
