"""obert-prune: the weights go that the loss misses least, by second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from sparsefx.errors import TrainingError
from sparsefx.masks import MaskSite
from sparsefx.passes.gradients import gradient_of
from sparsefx.passes.prune import fisher
from sparsefx.passes.prune.patterns import Block, parse_pattern
from sparsefx.passes.prune.scheduled import ScheduledPrune

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["ObertPrune"]

_SUFFIX = "_fisher"


@dataclass(frozen=True)
class ObertPrune(ScheduledPrune):
    """Multiplies weights by masks that are zero where the loss rises least without them.

    The Optimal BERT Surgeon (Kurtic et al. 2022): a unit Q of weights (one, or a block of the
    pattern) that becomes zero costs

        rho_Q = 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q        F = damp I + 1/m sum_i g_i g_i^T, in blocks of B

    and the weights that stay take over, ``w <- w - F^-1 E_Q ([F^-1]_QQ)^-1 w_Q``. The g_i are the
    gradients of the last m steps before the masks are chosen (of fewer, when they were chosen less
    than m steps ago), as the optimizer used them; the authors draw m gradients of extra batches
    instead. After each choice the estimate begins anew.

    Memory: the buffer ``<weight>_fisher`` holds F^-1, ``4 * block`` bytes for each weight (of 50:
    17 GB for the 85 M encoder weights of BERT-base, 2 GB for MiniLM-L6; of 16: a third). It moves
    while gradients are taken in, and is written with each checkpoint from then on. Call
    ``program.step()`` before ``optimizer.zero_grad()``.

    Establishes ``masked``; masks, schedule and what is skipped are those of magnitude-prune.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[2.0, 1.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 2))
    >>> text = "obert-prune{sparsity=0.5,begin=1,end=1,damp=0.1,compensation=off,roles=other}"
    >>> pruned = Pipeline.parse(text).run(program)
    >>> pruned(input=torch.tensor([[0.1, 1.0]]))["output"].sum().backward()
    >>> pruned.step()                                   # the loss hardly feels the larger weight
    >>> pruned.tensor("weight_mask")
    tensor([[0., 1.]])

    Attributes:
        sparsity: As in magnitude-prune; so are the next options up to ``update_end``.
        initial_sparsity: Share of zeros at ``begin``; the authors begin with 0.7.
        begin: First step at which weights are pruned, at least 1 with ``initial_sparsity``.
        end: Step at which ``sparsity`` is reached, at least 1: before, there are no gradients.
        exponent: Of the ramp.
        frequency: Steps between two choices of masks.
        update_end: Last step at which masks are chosen anew; 0 stands for ``end``.
        scope: One threshold for each ``tensor``, or a ``global`` one, as the authors have it.
        pattern: ``unstructured``, a block ``RxC``, or ``N:M`` (weights then count singly).
        mask: ``hard``; a weight without a gradient has no saliency by which it could come back.
        ties: Whether a score equal to the threshold is kept or dropped; see ``patterns.Ties``.
        roles: Roles of the weights to prune: encoder, pooler, head, embedding, convolution, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
        start: Step of the Program at which the schedule's step 0 lies; None: where the pass runs.
        block: B, the neighbours in a row whose second derivatives are known; the authors take 50.
        gradients: m, at most; the authors take 1024.
        damp: Added to the diagonal of F. Gradients that are clipped to a norm of 1 leave 1e-7 large
            enough; with elements of about 1 float32 does not suffice, which is refused.
        compensation: How the weights that stay take over: for ``each`` unit as if it went alone,
            summed, as in the released code; for all units of a block ``together``, which is exact;
            or ``off``.
    """

    name: ClassVar[str] = "obert-prune"

    begin: int = 1
    end: int = 1
    block: int = 50
    gradients: int = 64
    damp: float = 1e-7
    compensation: Literal["each", "together", "off"] = "each"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_gradients_are_there()
        if self.mask != "hard":
            raise self.refuse("mask", "weights without gradients cannot be scored; expected 'hard'")
        if self.gradients < 1:
            raise self.refuse("gradients", "expected at least 1")
        if not 0.0 < self.damp < float("inf"):
            raise self.refuse("damp", "expected a number > 0")
        if self.block < 1 or self.block % self._columns:
            raise self.refuse("block", f"expected a multiple of {self._columns}, as the pattern is")

    @property
    def _columns(self) -> int:
        """Neighbours that are scored as one unit."""
        pattern = parse_pattern(self.pattern)
        return pattern.columns if isinstance(pattern, Block) else 1

    def masked(self, rewriter: Rewriter, weight: str) -> MaskSite:
        """Put the mask in, and the buffer for the inverse Fisher matrix."""
        site = super().masked(rewriter, weight)
        value = rewriter.program.tensor(weight)
        rewriter.add_buffer(
            site.weight + _SUFFIX, fisher.prior(value.numel(), self.block, self.damp, value)
        )
        return site

    def drop_state(self, rewriter: Rewriter) -> None:
        """Remove the buffers."""
        super().drop_state(rewriter)
        for site in self.own_masks(rewriter.program):
            rewriter.remove_tensor(site.weight + _SUFFIX)

    def after_step(self, program: Program, step: int) -> None:
        """Take the gradients in when the next choice is near, then do as any scheduled pass."""
        passed = self.passed(step)
        coming = self.schedule.next_update(passed)
        if coming is not None:
            count = min(self.gradients, coming - self.schedule.former_update(coming))
            if coming - passed < count:
                self._learn(program, count)
        super().after_step(program, step)
        if coming == passed:
            self._begin_anew(program)

    def scores(self, program: Program, site: MaskSite) -> Tensor:
        """Return the saliencies.

        Raises:
            TrainingError: Rounding has destroyed the inverse, or gradients were not finite.
        """
        weight, inverse = self._read(program, site)
        if not fisher.is_sound(inverse):
            raise TrainingError(
                "float32 cannot hold the inverse of its Fisher matrix: its diagonal has values "
                "that are not above 0, or not finite",
                who=self.name,
                where=site.weight,
                hint=f"raise damp={self.damp:g}, or clip gradients",
            )
        found = fisher.saliency(inverse, fisher.cut(weight, self.block), self._columns)
        return fisher.joined(found, weight)

    def dropped(self, program: Program, site: MaskSite, gone: Tensor) -> None:
        """Move the weights that stay."""
        if self.compensation == "off":
            return
        weight, inverse = self._read(program, site)
        change = fisher.compensation(
            inverse,
            fisher.cut(weight, self.block),
            fisher.cut(gone, self.block),
            self._columns,
            together=self.compensation == "together",
        )
        weight.sub_(fisher.joined(change, weight))

    def _read(self, program: Program, site: MaskSite) -> tuple[Tensor, Tensor]:
        return program.tensor(site.weight), program.tensor(site.weight + _SUFFIX)

    @torch.no_grad()
    def _learn(self, program: Program, count: int) -> None:
        for site in self.own_masks(program):
            _, inverse = self._read(program, site)
            gradient = gradient_of(program, site.weight, who=self.name)
            fisher.learn(inverse, fisher.cut(gradient, self.block), count)

    @torch.no_grad()
    def _begin_anew(self, program: Program) -> None:
        for site in self.own_masks(program):
            weight, inverse = self._read(program, site)
            inverse.copy_(fisher.prior(weight.numel(), self.block, self.damp, weight))
