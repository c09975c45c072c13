"""What the pruning passes with a schedule share: masks that scores choose, along a ramp."""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from sparsefx.errors import PassError
from sparsefx.graph.finite import is_finite
from sparsefx.masks import MaskSite
from sparsefx.passbase import Pass, PassContext, PassReport, Window
from sparsefx.passes.prune.masking import add_mask, make_plain, masks_of, zero_masked
from sparsefx.passes.prune.patterns import (
    GroupWise,
    Pattern,
    Ties,
    mask_for,
    masks_together,
    parse_pattern,
    unfit,
)
from sparsefx.passes.prune.schedule import Schedule
from sparsefx.passes.selection import check_selection, select_weights
from sparsefx.properties import FIXES_ZEROS, Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["ScheduledPrune"]

logger = logging.getLogger(__name__)
_STRAIGHT = torch.ops.sparsefx.straight_through.default


@dataclass(frozen=True)
class ScheduledPrune(Pass):
    """Multiplies weights by masks that are zero where scores are smallest; a subclass scores.

    Pruning ends when pattern-lock or fold-masks takes the masks over.

    Its options are explained at ``magnitude-prune``, where users read them.
    """

    establishes: ClassVar[frozenset[Property]] = frozenset({Property.MASKED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = FIXES_ZEROS

    sparsity: float = 0.9
    initial_sparsity: float = 0.0
    begin: int = 0
    end: int = 0
    exponent: float = 3.0
    frequency: int = 1
    update_end: int = 0
    scope: Literal["tensor", "global"] = "tensor"
    pattern: str = "unstructured"
    mask: Literal["hard", "soft", "straight-through"] = "hard"
    ties: Ties = "keep"
    roles: tuple[str, ...] = ("encoder",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_schedule()
        try:
            pattern = parse_pattern(self.pattern)
        except (TypeError, ValueError) as error:
            raise self.refuse("pattern", str(error)) from error
        if isinstance(pattern, GroupWise) and self.scope == "global":
            raise self.refuse("scope", f"the pattern {pattern} decides in each group by itself")
        check_selection(self)

    def check_gradients_are_there(self) -> None:
        """Refuse a schedule that prunes when the pass runs; for scores that come from gradients."""
        if self.end < 1:
            raise self.refuse("end", "expected a step >= 1: no gradient is there before it")
        if self.begin < 1 and self.initial_sparsity:
            raise self.refuse("begin", "with initial_sparsity, expected a step >= 1")

    def _check_schedule(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise self.refuse(
                "sparsity", "expected 0 <= sparsity < 1", hint="0.9 is nine zeros in ten"
            )
        if not 0.0 <= self.initial_sparsity <= self.sparsity:
            raise self.refuse("initial_sparsity", f"expected 0 to sparsity={self.sparsity}")
        if self.begin < 0:
            raise self.refuse("begin", "expected a step >= 0")
        if self.end < self.begin:
            raise self.refuse("end", f"expected a step >= begin={self.begin}")
        if self.update_end and self.update_end < self.end:
            raise self.refuse("update_end", f"expected a step >= end={self.end}")
        if self.frequency < 1:
            raise self.refuse("frequency", "expected at least 1 step")
        if self.exponent <= 0:
            raise self.refuse("exponent", "expected a number > 0")

    @property
    def schedule(self) -> Schedule:
        """The ramp, in steps since the pass ran."""
        return Schedule(
            self.sparsity,
            self.initial_sparsity,
            self.begin,
            self.end,
            self.exponent,
            self.frequency,
            self.update_end,
        )

    @property
    def last_step(self) -> int:
        """The step at which the masks are chosen for the last time."""
        return self.schedule.last_update

    def mask_window(self, steps: int) -> Window:
        """Return the ramp; what lies behind since an earlier stage is over."""
        passed = steps - (self.start or 0)
        return Window(max(0, self.begin - passed), max(0, self.end - passed), self.frequency)

    # -- what a subclass says --------------------------------------------------------------------

    @abstractmethod
    def scores(self, program: Program, site: MaskSite) -> Tensor:
        """Return how much each weight matters: float32, shaped as it, >= 0."""

    def masked(self, rewriter: Rewriter, weight: str) -> MaskSite:
        """Put a mask of ones in for ``weight``, with the state that the pass keeps for it."""
        ones = torch.ones_like(rewriter.program.tensor(weight), dtype=torch.bool)
        product = _STRAIGHT if self.mask == "straight-through" else torch.ops.aten.mul.Tensor
        return add_mask(rewriter, weight, ones, owner=str(self), product=product)

    def drop_state(self, rewriter: Rewriter) -> None:
        """Leave nothing but masks and plain products; called when another pass takes them over."""
        for site in self.own_masks(rewriter.program):
            make_plain(rewriter, site)

    def kept(self, program: Program, site: MaskSite, sparsity: float) -> Tensor:
        """Return which weights stay, as a bool tensor, when each tensor has its own threshold."""
        return mask_for(
            self._scores(program, site), sparsity, parse_pattern(self.pattern), self.ties
        )

    @property
    def goal(self) -> str:
        """What the schedule leads to, for the report; empty when it is there at once."""
        return f"{self.sparsity:.2%} from step {self.end} on" if self.end else ""

    def dropped(self, program: Program, site: MaskSite, gone: Tensor) -> None:
        """Let the other weights answer for those that a hard mask is about to drop.

        Args:
            program: Where they are.
            site: Weight and mask, the mask still without the change.
            gone: bool, shaped as the weight: True where it is dropped now.
        """

    # -- what they share -------------------------------------------------------------------------

    def check_weights(self, program: Program) -> None:
        """Refuse a pattern that the weights cannot have."""
        chosen = select_weights(program, self.roles, self.include, self.exclude).chosen
        self._refuse_unreachable(program, chosen)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add the masks, and prune already where the schedule begins at step 0."""
        selection = select_weights(program, self.roles, self.include, self.exclude)
        skipped = selection.left_alone
        self._refuse_unreachable(program, selection.chosen)
        if not selection.chosen:
            return PassReport(0, skipped)
        item = self
        if self.start is None and program.steps:
            item = dataclasses.replace(self, start=program.steps)
        sites = [item.masked(ctx.rewriter, name) for name in selection.chosen]
        program.active = (*program.active, item)
        if item.schedule.updates(item.passed(program.steps)):
            item._choose(program, sites, program.steps)
        notes = (item._note(program, sites), *item._idle_options())
        return PassReport(len(sites), skipped, notes)

    def after_step(self, program: Program, step: int) -> None:
        """Choose masks anew where the schedule says so; zero the weights when ``mask='hard'``."""
        moves = self.schedule.updates(self.passed(step))
        if not moves and self.mask != "hard":
            return
        sites = self.own_masks(program)
        if not moves:
            zero_masked(program, sites)
            return
        self._choose(program, sites, step)
        if self.passed(step) == self.last_step:
            self.tell_untouched(program, sites)

    def own_masks(self, program: Program) -> tuple[MaskSite, ...]:
        """Return the masks that this pass put in; another pass may hold further ones."""
        return masks_of(program, self)

    def passed(self, step: int) -> int:
        """Return a step of the Program in steps of the schedule."""
        return step - (self.start or 0)

    @torch.no_grad()
    def _choose(self, program: Program, sites: Sequence[MaskSite], step: int) -> None:
        sparsity = self.schedule.sparsity(self.passed(step))
        if self.scope == "global":
            scores = [self._scores(program, site) for site in sites]
            chosen = masks_together(scores, sparsity, parse_pattern(self.pattern), self.ties)
            for site, mask in zip(sites, chosen, strict=True):
                self._set(program, site, mask)
            return
        for site in sites:
            self._set(program, site, self.kept(program, site, sparsity))

    def tell_untouched(self, program: Program, sites: Sequence[MaskSite]) -> None:
        """Log it where the last choice has dropped nothing, as it does where all scores are equal.

        Scores that are learned begin equal, and stay so while the learning rate is 0.
        """
        whole = [site.weight for site in sites if bool(program.tensor(site.mask).all())]
        if whole and self.sparsity and (self.scope == "tensor" or len(whole) == len(sites)):
            more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
            logger.warning(
                "%s: %s%s lost no weight, as all scores were equal at the last choice, or they are "
                "too few to drop one; let the ramp end later",
                *(self, whole[0], more),
            )

    def _scores(self, program: Program, site: MaskSite) -> Tensor:
        scores = self.scores(program, site)
        return scores * program.tensor(site.mask) if self.mask == "hard" else scores

    def _set(self, program: Program, site: MaskSite, chosen: Tensor) -> None:
        mask = program.tensor(site.mask)
        if self.mask != "hard":
            mask.copy_(chosen)
            return
        if bool(chosen.all()) and torch.count_nonzero(mask) == mask.numel():
            return  # the ramp has not begun to drop weights: nothing is written
        self.dropped(program, site, ~chosen & (mask != 0))
        mask.mul_(chosen)
        program.tensor(site.weight).mul_(mask)

    def _refuse_unreachable(self, program: Program, names: Sequence[str]) -> None:
        pattern = parse_pattern(self.pattern)
        for name in names:
            weight = program.tensor(name)
            if not is_finite(weight):
                raise PassError("it holds NaN or infinite values", who=self.name, where=name)
            reason = unfit(tuple(weight.shape), self._share(pattern), pattern)
            if reason:
                raise PassError(
                    reason,
                    who=self.name,
                    where=name,
                    hint=f"choose another pattern or sparsity, or leave it out: exclude='{name}'",
                )

    def _share(self, pattern: Pattern) -> float:
        """Return the sparsity that each single weight has to reach."""
        shared = self.scope == "global" and not isinstance(pattern, GroupWise)
        return 0.0 if shared else self.sparsity

    def _idle_options(self) -> tuple[str, ...]:
        """Return a sentence where options of a ramp were given but there is no ramp."""
        idle = {
            "initial_sparsity": self.end == self.begin,
            "exponent": self.end == self.begin,
            "frequency": self.last_step == self.begin,
        }
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        given = [name for name in idle if idle[name] and getattr(self, name) != defaults[name]]
        if not given:
            return ()
        where = f"all is pruned at step {self.begin}; give an end behind it for a ramp"
        return (f"{', '.join(given)}: without effect, {where}",)

    def _note(self, program: Program, sites: Sequence[MaskSite]) -> str:
        masks = [program.tensor(site.mask) for site in sites]
        total = sum(mask.numel() for mask in masks)
        zeros = total - sum(int(torch.count_nonzero(mask)) for mask in masks)
        share = f"{zeros:,} of {total:,} weights are zero ({zeros / total:.2%})"
        return f"{share}, pattern {self.pattern}{self.goal and ', ' + self.goal}"
