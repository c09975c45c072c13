"""magnitude-prune: weights of small magnitude become zero, at once or along a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from sparsefx.masks import MaskSite
from sparsefx.passes.prune.scheduled import ScheduledPrune

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["MagnitudePrune"]


@dataclass(frozen=True)
class MagnitudePrune(ScheduledPrune):
    """Multiplies weights by masks that are zero where magnitudes are smallest.

    Establishes ``masked``: each chosen ``weight`` is read as ``weight * weight_mask``. The masks
    are buffers; they move in ``program.step()`` along the schedule (:class:`Schedule`), until
    pattern-lock or fold-masks takes them over. With the defaults all is done at once, when the pass
    runs.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[1.0, -4.0], [3.0, 2.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 2))
    >>> print(graph_text(program), end="")
    %linear = aten.linear(%input_1, %weight)
    return {output: %linear}
    >>> pruned = Pipeline.parse("magnitude-prune{sparsity=0.5,roles=other}").run(program)
    >>> print(graph_text(pruned), end="")
    %mul = aten.mul.Tensor(%weight, %weight_mask)
    %linear = aten.linear(%input_1, %mul)
    return {output: %linear}
    >>> pruned.tensor("weight_mask")
    tensor([[0., 1.],
            [1., 0.]])

    Skips matrices of other roles, those that include and exclude rule out, those that have a mask
    already, and those used otherwise than as the weight of a linear, a convolution or an embedding.

    Attributes:
        sparsity: Share of zeros at the end, 0 <= sparsity < 1, of each weight or of all together.
        initial_sparsity: Share of zeros at ``begin``.
        begin: First step at which weights are pruned; 0 is when the pass runs.
        end: Step at which ``sparsity`` is reached; equal to ``begin``: one-shot.
        exponent: Of the ramp.
        frequency: Steps between two choices of masks.
        update_end: Last step at which masks are chosen anew; 0 stands for ``end``.
        scope: One threshold for each ``tensor``, or a ``global`` one.
        pattern: ``unstructured``, a block ``RxC`` (R outputs by C inputs), or ``N:M``.
        mask: ``hard``: weights are zeroed in place after every step and never come back
            (SparseBERT); ``soft``: they keep their value and come back when others become smaller
            (Prune OFA). Gradients of masked weights are zero in both. ``straight-through``: as
            soft, but masked weights go on learning, from the gradients of their places.
        ties: Whether a score equal to the threshold is kept or dropped; see ``patterns.Ties``.
        roles: Roles of the weights to prune: encoder, pooler, head, embedding, convolution, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
        start: Step of the Program at which the schedule's step 0 lies; None: where the pass runs.
    """

    name: ClassVar[str] = "magnitude-prune"

    def scores(self, program: Program, site: MaskSite) -> Tensor:
        """Return the magnitudes."""
        return program.tensor(site.weight).abs()
