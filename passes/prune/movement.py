"""movement-prune: weights go that training moves towards zero, whatever their size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, fx

from sparsefx.errors import PassError, TrainingError
from sparsefx.masks import MaskSite
from sparsefx.passbase import Contract, PassContext, PassReport, Skip
from sparsefx.passes.loss_terms import add_term
from sparsefx.passes.prune.masking import add_mask, masks_of
from sparsefx.passes.prune.patterns import Unstructured, mask_for
from sparsefx.passes.prune.scheduled import ScheduledPrune

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["PENALTY", "MovementPrune"]

aten = torch.ops.aten

PENALTY = "loss.movement"
_SCORES = "_scores"
_WEIGHT = "movement_penalty"
_LEAST = 0.005  # share of weights that stay whatever their scores, as in the released code


@dataclass(frozen=True)
class MovementPrune(ScheduledPrune):
    """Multiplies weights by masks that are chosen by how training moves the weights.

    Movement pruning (Sanh et al. 2020). W' = W * M is what the graph reads, and every weight has a
    score S that learns as if it were the mask:

        dL/dW = dL/dW' * M       dL/dS = dL/dW' * W       so that  S <- S - alpha W * dL/dW'

    A score falls while the loss pushes its weight towards zero, also under a mask, and so weights
    come back. ``choice='top'`` keeps the largest scores of each matrix, along the schedule
    (movement pruning); ``choice='threshold'`` keeps where sigmoid(S) > tau, and adds to the loss
    what makes scores fall (soft movement pruning; the mean is over weights, then over matrices):

        tau_t = threshold * r_t     L <- L + penalty * r_t * mean sigmoid(S)     r_t: cubic, 0 to 1

    How sparse the model becomes then follows from ``penalty``, not from ``sparsity``; at least
    0.5 % of each matrix stay. The scores are the parameters ``<weight>_scores``, which the
    optimizer trains with the others, times ``rate``: the released code trains them by Adam with a
    learning rate of their own, and a step of Adam does not depend on the size of gradients. As
    there, a session leaves weight decay out for them; in a loop of your own it would pull them
    towards zero. Memory: one more parameter for each weight, with its gradient and state of the
    optimizer.

    Establishes ``masked``; schedule and what is skipped are those of magnitude-prune. A threshold
    adds the outputs ``loss`` and ``loss.movement``: run it after ``distill``, and before
    pattern-lock or fold-masks take them off with ``keep-outputs`` or ``strip-distillation``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[2.0, 1.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 2))
    >>> pruned = Pipeline.parse("movement-prune{sparsity=0.5,roles=other}").run(program)
    >>> print(graph_text(pruned), end="")
    %scored_mask = sparsefx.scored_mask(%weight, %weight_mask, %weight_scores)
    %linear = aten.linear(%input_1, %scored_mask)
    return {output: %linear}
    >>> optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    >>> pruned(input=torch.tensor([[1.0, -1.0]]))["output"].sum().backward()
    >>> optimizer.step(); pruned.step()         # the larger weight shrinks, the smaller one grows
    >>> pruned.tensor("weight_mask")
    tensor([[0., 1.]])

    Attributes:
        sparsity: As in magnitude-prune, for ``choice='top'``; so are the next options.
        initial_sparsity: Share of zeros at ``begin``.
        begin: First step at which masks are chosen, at least 1 with ``initial_sparsity``.
        end: Step at which ``sparsity``, or threshold and penalty, are reached; at least 1.
        exponent: Of the ramp.
        frequency: Steps between two choices of masks; the released code chooses in every step.
        update_end: Last step at which masks are chosen anew; 0 stands for ``end``.
        scope: ``tensor``: scores of different weights are not compared.
        pattern: ``unstructured``, a block ``RxC``, or ``N:M``; a threshold takes no pattern.
        mask: ``soft``: masked weights keep their value.
        ties: Whether a score equal to the threshold is kept or dropped; see ``patterns.Ties``.
        roles: Roles of the weights to prune: encoder, pooler, head, embedding, convolution, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
        start: Step of the Program at which the schedule's step 0 lies; None: where the pass runs.
        choice: ``top`` or ``threshold``, see above.
        threshold: tau at ``end``; the released code has 0.1.
        penalty: Weight of mean sigmoid(S) at ``end``; the released code has 400.
        rate: Learning rate of the scores as a multiple of that of the weights; the released code
            has 1e-2 and 3e-5. Without effect on ``top``.
    """

    name: ClassVar[str] = "movement-prune"

    begin: int = 1
    end: int = 1
    scope: Literal["tensor"] = "tensor"
    mask: Literal["soft"] = "soft"
    choice: Literal["top", "threshold"] = "top"
    threshold: float = 0.1
    penalty: float = 400.0
    rate: float = 333.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_gradients_are_there()
        if not 0.0 < self.threshold < 1.0:
            raise self.refuse("threshold", "expected a value of the sigmoid, between 0 and 1")
        if not 0.0 <= self.penalty < float("inf"):
            raise self.refuse("penalty", "expected a number of 0 or more")
        if not 0.0 < self.rate < float("inf"):
            raise self.refuse("rate", "expected a number above 0")
        if self.choice == "threshold" and self.pattern != "unstructured":
            raise self.refuse("pattern", "a threshold decides for each weight by itself")

    def contract(self) -> Contract:
        """Return the contract: a threshold adds outputs."""
        return dataclasses.replace(super().contract(), changes_signature=self.choice == "threshold")

    @property
    def goal(self) -> str:
        """What the schedule leads to."""
        if self.choice == "top":
            return super().goal
        return f"sigmoid(score) > {self.threshold:g} from step {self.end} on"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add masks and scores; with a threshold, also the term of the loss."""
        soft = self.choice == "threshold"
        if soft and PENALTY in program.signature.outputs:
            return PassReport(0, (Skip(PENALTY, "it is returned already"),))
        report = super().run(program, ctx)
        if soft and report.applied:
            own = masks_of(program, program.active[-1])
            self._penalise(ctx.rewriter, [site.weight + _SCORES for site in own])
        return report

    def masked(self, rewriter: Rewriter, weight: str) -> MaskSite:
        """Put mask and scores in; all scores begin at 0."""
        value = rewriter.program.tensor(weight)
        name = rewriter.program.canonical(weight) + _SCORES
        scores = rewriter.add_parameter(name, torch.zeros_like(value))
        return add_mask(
            rewriter,
            weight,
            torch.ones_like(value, dtype=torch.bool),
            owner=str(self),
            product=torch.ops.sparsefx.scored_mask.default,
            scores=(scores,),
        )

    def drop_state(self, rewriter: Rewriter) -> None:
        """Remove the scores.

        Raises:
            PassError: The loss still reads them.
        """
        if self.choice == "threshold" and PENALTY in rewriter.program.signature.outputs:
            raise PassError(
                f"the output {PENALTY} still reads the scores",
                who=self.name,
                where=PENALTY,
                hint="run strip-distillation, or keep-outputs{outputs=logits}, before this",
            )
        sites = self.own_masks(rewriter.program)
        super().drop_state(rewriter)
        for site in sites:
            rewriter.remove_tensor(site.weight + _SCORES)

    def after_step(self, program: Program, step: int) -> None:
        """Choose masks by the scores; let the penalty follow the ramp."""
        super().after_step(program, step)
        if self.choice == "threshold" and PENALTY in program.signature.outputs:
            program.tensor(_WEIGHT).fill_(self.penalty * self._ramp(step) / self.rate)

    def scores(self, program: Program, site: MaskSite) -> Tensor:
        """Return the scores above the smallest one."""
        found = self._learned(program, site)
        return found - found.min()

    def kept(self, program: Program, site: MaskSite, sparsity: float) -> Tensor:
        """Return the largest scores, or those above the threshold."""
        if self.choice == "top":
            return super().kept(program, site, sparsity)
        found = torch.sigmoid(self.rate * self._learned(program, site))
        stay = found > self.threshold * self._ramp(program.steps)
        least = max(_LEAST, 1 / stay.numel())
        if float(stay.float().mean()) >= least:
            return stay
        return mask_for(self.scores(program, site), 1.0 - least, Unstructured(), self.ties)

    def tell_untouched(self, program: Program, sites: Sequence[MaskSite]) -> None:
        """Log it for ``top`` alone: how much a threshold drops is for the penalty to say."""
        if self.choice == "top":
            super().tell_untouched(program, sites)

    def _learned(self, program: Program, site: MaskSite) -> Tensor:
        """Return the scores as they are by now.

        Raises:
            TrainingError: They are frozen: all stay 0, and no weight would ever go.
        """
        found = program.tensor(site.weight + _SCORES)
        if not found.requires_grad:
            raise TrainingError(
                "its scores are frozen, and nothing tells which weights may go",
                who=self.name,
                where=site.weight,
                hint=f"freeze fewer: names of scores are those of weights and {_SCORES}",
            )
        return found.detach()

    def _ramp(self, step: int) -> float:
        whole = dataclasses.replace(self.schedule, final=1.0, initial=0.0)
        return whole.sparsity(self.passed(step))

    def _penalise(self, rewriter: Rewriter, scores: Sequence[str]) -> None:
        """Add the mean of all sigmoids to the loss.

        Its weight is divided by ``rate``, so that the scores get the gradient that S would get.
        """
        output = rewriter.program.graph.output_node()
        weight = rewriter.add_buffer(_WEIGHT, torch.zeros(()))
        with rewriter.before(output):
            means: list[fx.Node] = []
            for name in scores:
                scaled = rewriter.call(aten.mul.Tensor, rewriter.get(name), self.rate)
                means.append(
                    rewriter.call(aten.mean.default, rewriter.call(aten.sigmoid.default, scaled))
                )
            together = rewriter.call(aten.mean.default, rewriter.call(aten.stack.default, means))
            add_term(rewriter, PENALTY, together, weight)
