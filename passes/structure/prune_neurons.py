"""prune-neurons: feed-forward blocks become narrower, with smaller tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure, LinearSite
from sparsefx.passes.structure.feature_order import why_order_matters
from sparsefx.passes.structure.used_once import why_shared
from sparsefx.properties import BOUND_TO_SHAPES, Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["PruneNeurons"]

_WIDTHS = ("intermediate_size", "hidden_dim")


@dataclass(frozen=True)
class PruneNeurons(Pass):
    """Removes the weakest neurons of every feed-forward block; its tensors really shrink.

    Of n neurons those with the largest product of norms stay, equally many in every layer:

        s_j = |up_j| |down_j|    up_j the row that makes neuron j, down_j the column that reads it

    It bounds what neuron j adds to the layer's output for an input of length 1, where the
    activation does not amplify. As what is removed is whole rows and columns, any target is faster
    by it, and the result saves as a plain Hugging Face model with a smaller ``intermediate_size``.
    Train on afterwards, best with ``distill``.

    Establishes nothing. Skips gated blocks, layers whose feed-forward tensors are used elsewhere
    too, and all layers when one cannot shrink, as the configuration has one width for all.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder()
    >>> small = Pipeline.parse("prune-neurons{ratio=0.5}").run(program)
    >>> small.config["intermediate_size"]
    4
    >>> tuple(small.tensor("encoder.layer.1.output.dense.weight").shape)
    (8, 4)

    Attributes:
        ratio: Neurons that stay, for each feature of the hidden states; BERT has 4.
        multiple: The number that stays is rounded up to a multiple of it.
    """

    name: ClassVar[str] = "prune-neurons"
    reshapes: ClassVar[bool] = True
    forbids: ClassVar[frozenset[Property]] = BOUND_TO_SHAPES

    ratio: float = 2.0
    multiple: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.ratio < math.inf:
            raise self.refuse("ratio", "expected a number above 0")
        if self.multiple < 1:
            raise self.refuse("multiple", "expected at least 1")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Choose the neurons of each layer, and cut rows, biases and columns."""
        found = program.facts(EncoderStructure)
        if not found.layers:
            return PassReport(0, (Skip("layers", found.reason),))
        count = self._count(program, found.layers[0])
        reasons = {layer.index: _unfit(program, layer, count) for layer in found.layers}
        skipped = tuple(Skip(f"layer {index}", why) for index, why in reasons.items() if why)
        if skipped:
            return PassReport(0, skipped)
        for layer in found.layers:
            _cut(ctx.rewriter, layer, _strongest(program, layer, count))
        for key in _WIDTHS:
            if key in program.config:
                program.config[key] = count
        program.invalidate()  # set_tensor infers the tensor alone, and what follows is narrower
        note = f"{count} neurons stay in each of {len(found.layers)} layers"
        return PassReport(len(found.layers), notes=(note,))

    def _count(self, program: Program, layer: EncoderLayer) -> int:
        wanted = round(program.tensor(layer.down.weight).shape[0] * self.ratio, 6)
        return max(1, math.ceil(wanted / self.multiple)) * self.multiple


@torch.no_grad()
def _strongest(program: Program, layer: EncoderLayer, count: int) -> Tensor:
    """Return which neurons stay, ascending."""
    up, down = program.tensor(layer.up[0].weight), program.tensor(layer.down.weight)
    scores = torch.linalg.vector_norm(up, dim=1) * torch.linalg.vector_norm(down, dim=0)
    kept: Tensor = scores.topk(count).indices.sort().values
    return kept


def _unfit(program: Program, layer: EncoderLayer, count: int) -> str:
    """Return why a block cannot shrink; empty when it can."""
    if len(layer.up) != 1:
        return "its feed-forward block has a gate"
    if shared := why_shared(program, _tensors(layer.up[0], layer.down)):
        return shared
    made, read = program.tensor(layer.up[0].weight), program.tensor(layer.down.weight)
    if made.shape[0] != read.shape[1]:
        return "its feed-forward block has a gate"
    if made.shape[0] <= count:
        return f"it has {made.shape[0]} neurons, and {count} are to stay"
    return why_order_matters(program, [layer.up[0].node], layer.down.node)


def _tensors(up: LinearSite, down: LinearSite) -> list[str]:
    return [name for name in (up.weight, up.bias, down.weight) if name is not None]


@torch.no_grad()
def _cut(rewriter: Rewriter, layer: EncoderLayer, kept: Tensor) -> None:
    up, down = layer.up[0], layer.down
    for name in (up.weight, up.bias):
        if name is not None:
            rewriter.set_tensor(name, rewriter.program.tensor(name)[kept].clone())
    weight = rewriter.program.tensor(down.weight)
    rewriter.set_tensor(down.weight, weight[:, kept].contiguous())
