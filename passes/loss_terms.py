"""The outputs ``loss`` and ``loss.NAME``, what training minimises: how passes make them."""

from __future__ import annotations

import torch
from torch import fx

from sparsefx.inputs.signature import LOSS
from sparsefx.rewrite import Rewriter

__all__ = ["IGNORED", "SUM", "add_term", "cross_entropy", "mean_of_known"]

aten = torch.ops.aten

SUM = 2
"""The reduction of a loss operator that adds up."""
IGNORED = -100
"""The class that cross-entropy leaves out, for what has no label."""


def add_term(rewriter: Rewriter, output: str, term: fx.Node, weight: fx.Node | float = 1.0) -> None:
    """Return ``term`` as ``output``, and add ``weight * term`` to the output ``loss``.

    Call it where new nodes may stand: ``with rewriter.before(program.graph.output_node())``.

    Args:
        rewriter: Of the pass that adds the term.
        output: ``loss.`` and the name of the term.
        term: float scalar.
        weight: A number, or a node that gives a float scalar.
    """
    scaled = term if weight == 1.0 else rewriter.call(aten.mul.Tensor, term, weight)
    before = rewriter.program.outputs().get(LOSS)
    total = scaled if before is None else rewriter.call(aten.add.Tensor, before, scaled)
    rewriter.set_output(LOSS, total)
    rewriter.set_output(output, term)


def cross_entropy(rewriter: Rewriter, logits: fx.Node, labels: fx.Node) -> fx.Node:
    """Return the mean cross-entropy of all but ``IGNORED`` labels.

    Args:
        rewriter: Of the pass that needs it.
        logits: float [batch, classes] or [batch, sequence, classes].
        labels: int64 [batch] or [batch, sequence].
    """
    if logits.meta["val"].dim() == 3:
        logits = rewriter.call(aten.flatten.using_ints, logits, 0, 1)
        labels = rewriter.call(aten.flatten.using_ints, labels)
    total = rewriter.call(aten.cross_entropy_loss.default, logits, labels, None, SUM, IGNORED)
    return mean_of_known(rewriter, total, rewriter.call(aten.ne.Scalar, labels, IGNORED))


def mean_of_known(rewriter: Rewriter, total: fx.Node, known: fx.Node) -> fx.Node:
    """Return a mean as sum over count, not by an operator's own: 0, not NaN, where none is known.

    Args:
        rewriter: Of the pass that needs it.
        total: float scalar, the sum over what is known.
        known: bool, True where something is.
    """
    count = rewriter.call(aten.clamp.default, rewriter.call(aten.sum.default, known), 1)
    return rewriter.call(aten.div.Tensor, total, count)
