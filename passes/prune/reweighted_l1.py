"""reweighted-l1: after every step weights shrink towards zero, small ones the most."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.masks import MaskSite
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.selection import check_selection, select_weights
from sparsefx.properties import FIXES_ZEROS, Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["PENALTY", "ReweightedL1"]

aten = torch.ops.aten

PENALTY = "loss.l1"
_SUFFIX = "_l1"


@dataclass(frozen=True)
class ReweightedL1(Pass):
    """Take the proximal step of a weighted l1 norm after every step of the optimizer.

        w <- sign(w) max(|w| - shrink / over * a, 0)    a = 1 at first, then 1 / (|w| + epsilon)
                                                        anew every ``reweight_every`` steps

    The optimizer sees the loss alone, the norm acts outside of back-propagation: reweighted
    proximal pruning (Guo et al. 2019, section 3.2, after Candes et al. 2008). ``shrink / over`` is
    the product of the paper's penalty and step size, whose values are not published. How sparse the
    model becomes follows from it; a weight may come back as long as gradients move it. End it with
    ``keep-outputs`` and ``pattern-lock``, which freezes the zeros.

    Each weight gets a buffer ``<weight>_l1`` that holds a. The output ``loss.l1``, shrink / over *
    sum a |w|, tells how large the norm is; it is no part of ``loss``.

    Establishes nothing. Skips what magnitude-prune skips.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[0.5, -0.1, 0.25]]))
    >>> program = small_program(layer, input=torch.ones(1, 3))
    >>> trained = Pipeline.parse("reweighted-l1{shrink=0.125,roles=other}").run(program)
    >>> trained.step()
    >>> trained.tensor("weight").tolist()
    [[0.375, -0.0, 0.125]]

    Attributes:
        shrink: By how much a weight of a = 1 shrinks in ``over`` steps, > 0.
        over: A number of steps; ``over=100%`` in a recipe makes ``shrink`` what a stage takes away,
            however long it is.
        reweight_every: Steps from one choice of a to the next; 0 for never.
        epsilon: Keeps a finite, > 0.
        roles: Roles of the weights: encoder, pooler, head, embedding, convolution, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
        start: Step of the Program from which steps are counted; None: where the pass runs.
    """

    name: ClassVar[str] = "reweighted-l1"
    changes_signature: ClassVar[bool] = True
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = FIXES_ZEROS

    shrink: float = 1e-7
    over: int = 1
    reweight_every: int = 0
    epsilon: float = 1e-3
    roles: tuple[str, ...] = ("encoder",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self)
        for option in ("shrink", "epsilon"):
            if not getattr(self, option) > 0:
                raise self.refuse(option, "expected a number above 0")
        if self.over < 1:
            raise self.refuse("over", "expected a number of steps, at least 1")
        if self.reweight_every < 0:
            raise self.refuse("reweight_every", "expected a number of steps, or 0")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add the buffers, and the output that reads them."""
        rw = ctx.rewriter
        if PENALTY in program.signature.outputs:
            return PassReport(0, (Skip(PENALTY, "it is returned already"),))
        found = select_weights(program, self.roles, self.include, self.exclude)
        skipped = found.left_alone
        if not found.chosen:
            return PassReport(0, skipped)
        nodes = [
            (rw.get(name), rw.add_buffer(name + _SUFFIX, torch.ones_like(program.tensor(name))))
            for name in found.chosen
        ]
        with rw.before(program.graph.output_node()):
            parts: list[fx.Node] = []
            for weight, scale in nodes:
                product = rw.call(aten.mul.Tensor, rw.call(aten.abs.default, weight), scale)
                parts.append(rw.call(aten.sum.default, product))
            total = parts[0]
            for part in parts[1:]:
                total = rw.call(aten.add.Tensor, total, part)
            rw.set_output(PENALTY, rw.call(aten.mul.Tensor, total, self._step))
        start = program.steps if self.start is None else self.start
        program.active = (*program.active, dataclasses.replace(self, start=start))
        return PassReport(len(nodes), skipped)

    @property
    def _step(self) -> float:
        """By how much a weight of a = 1 shrinks in a step."""
        return self.shrink / self.over

    @torch.no_grad()
    def after_step(self, program: Program, step: int) -> None:
        """Shrink every weight; choose the scales anew where it is time."""
        reads = program.graph.find_nodes(op="get_attr")
        names = [str(node.target) for node in reads if node.meta.get("by") == self.name]
        anew = self.reweight_every and (step - (self.start or 0)) % self.reweight_every == 0
        for name in names:
            scale, weight = program.tensor(name), program.tensor(name.removesuffix(_SUFFIX))
            size = weight.abs().sub_(scale, alpha=self._step).clamp_(min=0.0)
            weight.copy_(size.mul_(weight.sign()))
            if anew:
                scale.copy_((weight.abs() + self.epsilon).reciprocal_())

    def own_masks(self, program: Program) -> tuple[MaskSite, ...]:
        """Return no masks: its zeros lie in the weights, where pattern-lock finds and ends it."""
        return ()
