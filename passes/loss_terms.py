"""How a pass adds a term to what training minimises: the outputs ``loss`` and ``loss.NAME``."""

from __future__ import annotations

from torch import fx

from sparsefx.passes.analyses.dataflow import aten
from sparsefx.rewrite import Rewriter

__all__ = ["add_term"]


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
    before = rewriter.outputs().get("loss")
    total = scaled if before is None else rewriter.call(aten.add.Tensor, before, scaled)
    rewriter.set_output("loss", total)
    rewriter.set_output(output, term)
