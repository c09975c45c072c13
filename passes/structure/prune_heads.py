"""prune-heads: attention loses its weakest heads, with smaller tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from sparsefx.errors import PassError
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderLayer, EncoderStructure
from sparsefx.passes.structure.head_axes import HeadAxes, trace_heads
from sparsefx.passes.structure.score_heads import drop_scores, scores_name
from sparsefx.passes.structure.used_once import why_shared
from sparsefx.properties import BOUND_TO_SHAPES, Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["PruneHeads"]


@dataclass(frozen=True)
class PruneHeads(Pass):
    """Removes the weakest heads of every attention; its tensors really shrink.

    Rows of the query, key and value linears go, columns of the output linear, and the graph works
    on fewer heads. Weak are those with the smallest score

        magnitude   s_h = |V_h| |O_h|                rows of the value, columns of the output linear
        gradient    s_h = what score-heads added up  (Michel et al. 2019)

    Scores that ``score-heads`` added up end with it, whichever ones it takes.

    Any target is faster by it, and a Program is saved and loaded as ever; a Hugging Face folder has
    no place for such an attention. Train on afterwards, best with ``distill``.

    Establishes nothing. Skips layers whose tensors are used elsewhere too, whose heads get values
    of their own (the relative positions of MPNet and DeBERTa), where an operator is not known to
    keep heads apart, and those that have no head to lose.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder(num_attention_heads=4)
    >>> small = Pipeline.parse("prune-heads{ratio=0.5}").run(program)
    >>> small.history[-1].notes
    ('4 of 8 heads stay: 2, 2',)
    >>> tuple(small.tensor("encoder.layer.1.attention.output.dense.weight").shape)
    (8, 4)

    Attributes:
        ratio: Share of the heads that stay, above 0 and at most 1; at least one in each layer.
        scope: The share of each ``layer``, or a ``global`` one, where layers may keep more or
            fewer; the scores of a layer are then divided by their norm, as the paper advises.
        score: ``magnitude``, or ``gradient``, which ``score-heads`` has to have prepared.
    """

    name: ClassVar[str] = "prune-heads"
    reshapes: ClassVar[bool] = True
    forbids: ClassVar[frozenset[Property]] = BOUND_TO_SHAPES

    ratio: float = 0.5
    scope: Literal["layer", "global"] = "layer"
    score: Literal["magnitude", "gradient"] = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.ratio <= 1.0:
            raise self.refuse("ratio", "expected a share above 0, at most 1")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Score the heads, choose those that stay, and cut the others out."""
        found = program.facts(EncoderStructure)
        if not found.layers:
            return PassReport(0, (Skip("layers", found.reason),))
        traced = {layer.index: _traced(program, layer) for layer in found.layers}
        fit = [layer for layer in found.layers if not traced[layer.index].reason]
        kept = self._kept([self._scores(program, layer) for layer in fit])
        skipped = [Skip(f"layer {i}", axes.reason) for i, axes in traced.items() if axes.reason]
        applied = 0
        for layer, stay in zip(fit, kept, strict=True):
            if len(stay) == layer.core.heads:
                skipped.append(Skip(f"layer {layer.index}", f"all its {len(stay)} heads stay"))
                continue
            _cut(ctx.rewriter, layer, traced[layer.index], stay)
            applied += 1
        if applied or self.score == "gradient":
            drop_scores(ctx.rewriter)  # those of fewer heads would be wrong in the next step
        total = sum(layer.core.heads for layer in fit)
        counts = ", ".join(str(len(stay)) for stay in kept)
        notes = (f"{sum(map(len, kept))} of {total} heads stay: {counts}",) if applied else ()
        return PassReport(applied, tuple(skipped), notes)

    @torch.no_grad()
    def _scores(self, program: Program, layer: EncoderLayer) -> Tensor:
        """Return the scores of a layer's heads, float32 [heads]."""
        output = program.tensor(layer.output.weight)
        if self.score == "gradient":
            return self._learned(program, layer)
        value = program.tensor(layer.v.weight)
        made = value[-output.shape[1] :].reshape(layer.core.heads, -1)  # the last part when fused
        read = output.reshape(len(output), layer.core.heads, -1)
        found: Tensor = made.norm(dim=1) * read.norm(dim=(0, 2))
        return found

    def _learned(self, program: Program, layer: EncoderLayer) -> Tensor:
        """Return what score-heads added up; refuse what says nothing about the heads."""
        scores = program.named_tensors().get(scores_name(layer.output.weight))
        if scores is not None and bool(scores.any()) and bool(scores.isfinite().all()):
            return scores
        wrong = (
            "" if scores is None else f": they are {'zero' if not scores.any() else 'not finite'}"
        )
        raise PassError(
            f"no scores were learned{wrong}",
            who=self.name,
            where=f"layer {layer.index}",
            hint="run score-heads and train some steps, or take score='magnitude'",
        )

    def _kept(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return which heads stay in each layer, ascending."""
        if self.scope == "layer":
            return [_strongest(part, max(1, round(len(part) * self.ratio))) for part in scores]
        if not scores:
            return []
        parts = [part / part.norm().clamp(min=torch.finfo(part.dtype).tiny) for part in scores]
        for part in parts:
            part[part.argmax()] = torch.inf  # one of each layer stays
        together = torch.cat(parts)
        count = max(len(parts), round(len(together) * self.ratio))
        threshold = together.topk(count).values[-1]
        return [torch.nonzero(part >= threshold).flatten() for part in parts]


def _strongest(scores: Tensor, count: int) -> Tensor:
    found: Tensor = scores.topk(count).indices.sort().values
    return found


def _traced(program: Program, layer: EncoderLayer) -> HeadAxes:
    """Return where the heads of a layer are, or why they have to stay."""
    axes = trace_heads(layer)
    if not axes.reason:
        axes.reason = why_shared(program, [*_made(layer), layer.output.weight])
    return axes


def _made(layer: EncoderLayer) -> list[str]:
    """Return the tensors whose rows make queries, keys and values."""
    makers = [layer.q] if layer.fused else [layer.q, layer.k, layer.v]
    names = [name for site in makers for name in (site.weight, site.bias)]
    return [*dict.fromkeys(name for name in names if name is not None)]  # one may make two of them


@torch.no_grad()
def _cut(rewriter: Rewriter, layer: EncoderLayer, axes: HeadAxes, kept: Tensor) -> None:
    program, size = rewriter.program, axes.size
    rows = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
    for name in _made(layer):
        tensor = program.tensor(name)
        starts = range(0, len(tensor), axes.heads * size)
        taken = torch.cat([start + rows for start in starts])
        rewriter.set_tensor(name, tensor[taken].clone())
    output = layer.output
    rewriter.set_tensor(output.weight, program.tensor(output.weight)[:, rows].contiguous())
    axes.resize(rewriter, len(kept))
    rewriter.set_args(output.node, *output.node.args, **output.node.kwargs)
