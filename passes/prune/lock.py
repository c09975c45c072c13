"""pattern-lock: what is zero stays zero, whatever the optimizer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sparsefx.masks import student_masks
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.prune.masking import (
    add_mask,
    assert_none_revived,
    bake,
    end_owners,
    zero_masked,
)
from sparsefx.passes.selection import check_selection, select_weights
from sparsefx.properties import FIXES_ZEROS, Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["PatternLock"]


@dataclass(frozen=True)
class PatternLock(Pass):
    """Freezes the pattern of non-zeros: each mask becomes ``weight != 0`` and moves no more.

    Establishes ``masked`` and ``locked``. It takes over the masks that are there, and ends the
    schedule that moved them; a weight without a mask that has zeros (a sparse model that was
    loaded) gets one. Masked gradients alone do not keep a zero: momentum from before the lock moves
    it. So after every step the locked weights are set to zero again.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 2))
    >>> locked = Pipeline.parse("pattern-lock").run(program)
    >>> locked.tensor("weight_mask")
    tensor([[1., 0.],
            [1., 1.]])
    >>> optimizer = torch.optim.AdamW(locked.parameters(), lr=0.1)
    >>> locked(input=torch.ones(1, 2))["output"].sum().backward()
    >>> optimizer.step(); locked.step()
    >>> locked.tensor("weight") == 0
    tensor([[False,  True],
            [False, False]])

    Skips matrices without zeros, those that are all zero (a lock would end their training), those
    of other roles, and those that include and exclude rule out. Masks in the graph are all locked,
    those of a teacher aside.

    Attributes:
        roles: Roles of the weights without a mask to look at.
        include: Regular expressions; such a weight must match one of them, when there are any.
        exclude: Regular expressions; such a weight must match none.
        check_every: Steps between two checks that no locked weight is other than zero (a NaN would
            be); 0 for none.
    """

    name: ClassVar[str] = "pattern-lock"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.MASKED, Property.LOCKED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = FIXES_ZEROS

    roles: tuple[str, ...] = ("encoder", "pooler", "head", "convolution", "other")
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    check_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self)
        if self.check_every < 0:
            raise self.refuse("check_every", "expected a number of steps, or 0")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Freeze the masks that are there and add those that are missing."""
        taken = student_masks(program)
        for site in taken:
            bake(program, site)
            torch.ne(program.tensor(site.weight).detach(), 0, out=program.tensor(site.mask))
        selection = select_weights(program, self.roles, self.include, self.exclude)
        skipped = list(selection.skipped)
        added = 0
        for name in selection.chosen:
            pattern = program.tensor(name).detach() != 0
            count = int(torch.count_nonzero(pattern))
            if count in (0, pattern.numel()):
                skipped.append(Skip(name, "all of it is zero" if count == 0 else "it has no zero"))
                continue
            add_mask(ctx.rewriter, name, pattern, owner=str(self))
            added += 1
        notes: tuple[str, ...] = (f"{len(taken)} masks taken over, {added} made from zeros",)
        if taken or added:
            notes += end_owners(ctx.rewriter)
            program.active = (*program.active, self)
        return PassReport(len(taken) + added, tuple(skipped), notes)

    def after_step(self, program: Program, step: int) -> None:
        """Set the locked weights to zero; now and then check that they are.

        Raises:
            TrainingError: When a locked weight is not zero.
        """
        zero_masked(program, student_masks(program))
        if self.check_every and step % self.check_every == 0:
            assert_none_revived(program, who=self.name)
