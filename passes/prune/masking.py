"""What the pruning passes do to a graph and its tensors: put masks in, keep zeros zero."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from sparsefx.errors import TrainingError
from sparsefx.masks import MASK_SUFFIX, MaskSite, student_masks

if TYPE_CHECKING:
    from sparsefx.passbase import Pass
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = [
    "MaskOwner",
    "StateOwner",
    "add_mask",
    "assert_none_revived",
    "bake",
    "end_owners",
    "make_plain",
    "masks_of",
    "revived_weights",
    "zero_masked",
]


logger = logging.getLogger(__name__)


@runtime_checkable
class MaskOwner(Protocol):
    """A pass that put masks in and keeps them up in training, until another takes them over."""

    def own_masks(self, program: Program) -> tuple[MaskSite, ...]:
        """Return the masks that this pass put in."""


@runtime_checkable
class StateOwner(MaskOwner, Protocol):
    """A pass that keeps more than masks in the graph while it moves them."""

    def drop_state(self, rewriter: Rewriter) -> None:
        """Take everything but the masks out of the graph."""


def masks_of(program: Program, owner: Pass) -> tuple[MaskSite, ...]:
    """Return the masks that :func:`add_mask` put in for ``owner``; others may hold further ones."""
    text = str(owner)
    return tuple(site for site in student_masks(program) if site.product.meta.get("by") == text)


def end_owners(rewriter: Rewriter) -> tuple[str, ...]:
    """End the passes that hold masks, and remove what else they put in; the masks stay.

    A pass holds masks if it is a :class:`MaskOwner`, or if the Rewriter made a mask's product for
    it: so a pass that knows nothing of this module is ended too.

    Returns:
        A sentence for each that has not come to the end of its ramp, which is logged too.
    """
    program = rewriter.program
    cut = tuple(filter(None, (_cut_short(program, item) for item in program.active)))
    for sentence in cut:
        logger.warning("%s", sentence)
    for item in program.active:
        if isinstance(item, StateOwner):
            item.drop_state(rewriter)
    makers = {site.product.meta.get("by") for site in student_masks(program)}
    program.active = tuple(
        item
        for item in program.active
        if not isinstance(item, MaskOwner) and item.name not in makers
    )
    return cut


def _cut_short(program: Program, item: Pass) -> str:
    """Say that a ramp is not over; empty where it is."""
    window = item.mask_window(program.steps)
    if window is None or window.end <= 0:
        return ""
    return (
        f"{item} ends {window.end} steps before its ramp does, after {program.steps} calls of "
        "program.step(): fewer weights are zero than it asks for"
    )


def add_mask(
    rewriter: Rewriter,
    weight: str,
    mask: Tensor,
    *,
    owner: str,
    product: Callable[..., Any] = torch.ops.aten.mul.Tensor,
    scores: tuple[fx.Node, ...] = (),
) -> MaskSite:
    """Multiply a weight by a mask wherever the graph reads it.

    The mask gets the dtype of the weight: a product of two float32 tensors takes half the time of
    one with a bool tensor, forward and backward.

    Args:
        rewriter: Of the pass that adds the mask.
        weight: Name of the weight.
        mask: bool, shaped as the weight.
        owner: Text form of the pass, kept in the product's ``meta["by"]``; see ``ScheduledPrune``.
        product: What multiplies: see :mod:`sparsefx.masks`.
        scores: What ``product`` is given besides weight and mask.
    """
    value = rewriter.program.tensor(weight)
    node = rewriter.get(weight)
    mask_name = rewriter.program.canonical(weight) + MASK_SUFFIX
    mask_node = rewriter.add_buffer(mask_name, mask.to(value.dtype))
    with rewriter.before(min(node.users)):
        masked = rewriter.call(product, node, mask_node, *scores)
    masked.meta["by"] = owner
    rewriter.replace(node, masked, erase=False)
    return MaskSite(str(node.target), mask_name, masked)


def make_plain(rewriter: Rewriter, site: MaskSite) -> None:
    """Let a mask be a plain product, whose gradients are that of a product."""
    plain = torch.ops.aten.mul.Tensor
    if site.product.target is plain:
        return
    with rewriter.before(site.product):
        new = rewriter.call(plain, *site.product.args[:2])
    new.meta["by"] = site.product.meta["by"]
    rewriter.replace(site.product, new)


@torch.no_grad()
def zero_masked(program: Program, sites: Sequence[MaskSite]) -> None:
    """Set the weights under the zeros of their masks to zero, in place."""
    if sites:
        torch._foreach_mul_(
            [program.tensor(site.weight) for site in sites],
            [program.tensor(site.mask) for site in sites],
        )


@torch.no_grad()
def bake(program: Program, site: MaskSite) -> None:
    """Write ``weight * mask`` into the weight; under the mask stand plain zeros, no -0.0."""
    program.tensor(site.weight).masked_fill_(program.tensor(site.mask) == 0, 0.0)


@torch.no_grad()
def revived_weights(program: Program) -> dict[str, int]:
    """Return how many weights are not zero although their mask is, by name; empty when all is well.

    A weight that is NaN counts: its product with a mask of 0 is NaN, not 0.
    """
    found = {}
    for site in student_masks(program):
        weight, mask = program.tensor(site.weight), program.tensor(site.mask)
        count = int(torch.count_nonzero(weight.masked_fill(mask != 0, 0)))
        if count:
            found[site.weight] = count
    return found


def assert_none_revived(program: Program, *, who: str = "") -> None:
    """Hold all weights under zeros of masks to zero.

    Raises:
        TrainingError: Naming the weights that are not.
    """
    revived = revived_weights(program)
    if revived:
        listed = ", ".join(f"{name} ({count})" for name, count in revived.items())
        raise TrainingError(
            f"{sum(revived.values())} locked weights are not zero: {listed}",
            who=who,
            where=next(iter(revived)),
            hint="something wrote to the weights after program.step(), or they are NaN",
        )
