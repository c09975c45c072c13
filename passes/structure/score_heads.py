"""score-heads: while the model trains, learn how much the loss needs each attention head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.gradients import gradient_of
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["ScoreHeads", "drop_scores", "scores_name"]

_SUFFIX = "_heads"


def scores_name(weight: str) -> str:
    """Return the buffer with the scores of the heads that an output linear reads."""
    return weight + _SUFFIX


def drop_scores(rewriter: Rewriter) -> None:
    """End the scoring, and remove the scores."""
    program = rewriter.program
    for name in _scores(program):
        rewriter.remove_tensor(name)
    program.active = tuple(item for item in program.active if not isinstance(item, ScoreHeads))


@dataclass(frozen=True)
class ScoreHeads(Pass):
    """Adds up, over the steps of the training, how much the loss feels each attention head.

        I_h = sum_steps | dL / dxi_h | = sum_steps | sum O_h * dL/dO_h |

    xi_h is a factor before what head h adds, which is 1 (Michel et al. 2019, equation 2); as the
    output linear O adds the heads up, its gradient says what that of xi_h is. The paper takes the
    absolute value for each example, here it is taken for each step. ``prune-heads{score=gradient}``
    reads the scores; ``prune-heads``, whatever its score, removes them.

    Give the stage a learning rate of 1e-6 or so: O is read after the optimizer's step and its
    gradient is that of before, and what AdamW adds to O in between grows with the rate (at 1e-3
    scores came out 1.0 to 2.9 times as large as they are). Clipping the gradients (``clip``) scales
    the share that a step has in the sum. Call ``program.step()`` before ``optimizer.zero_grad()``.

    Establishes nothing. Skips a graph without encoder layers, and layers with scores.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder()
    >>> scored = Pipeline.parse("score-heads").run(program)
    >>> scored(input_ids=torch.ones(2, 4).long())["pooler_output"].sum().backward()
    >>> scored.step()
    >>> bool((scored.tensor("encoder.layer.1.attention.output.dense.weight_heads") > 0).all())
    True
    """

    name: ClassVar[str] = "score-heads"
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED, Property.FUSED})

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add a buffer of zeros for each layer."""
        found = program.facts(EncoderStructure)
        if not found.layers:
            return PassReport(0, (Skip("layers", found.reason),))
        skipped, known = [], set(_scored(program))
        for layer in found.layers:
            weight = layer.output.weight
            if weight in known:
                skipped.append(Skip(f"layer {layer.index}", "its heads are scored already"))
                continue
            zeros = torch.zeros(layer.core.heads, device=program.tensor(weight).device)
            ctx.rewriter.add_buffer(scores_name(weight), zeros)
            known.add(weight)
        applied = len(found.layers) - len(skipped)
        if applied:
            program.active = (*program.active, self)
        return PassReport(applied, tuple(skipped))

    @torch.no_grad()
    def after_step(self, program: Program, step: int) -> None:
        """Add what this step's gradients say."""
        for name in _scored(program):
            scores, weight = program.tensor(scores_name(name)), program.tensor(name)
            felt = weight * gradient_of(program, name, who=self.name)
            scores.add_(felt.reshape(len(felt), len(scores), -1).sum((0, 2)).abs())


def _scored(program: Program) -> list[str]:
    """Return the output weights whose heads have scores."""
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    weights = {name.removesuffix(_SUFFIX) for name in _scores(program)}
    return sorted(weights & read)


def _scores(program: Program) -> list[str]:
    """Return the buffers with scores, also those whose weight another pass has removed."""
    reads = program.graph.find_nodes(op="get_attr")
    return [str(node.target) for node in reads if node.meta.get("by") == ScoreHeads.name]
