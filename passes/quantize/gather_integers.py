"""The pass gather-integers: dequantize the rows that are read, not whole embedding tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.passbase import Pass, PassContext, PassReport

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["GatherIntegers"]

aten = torch.ops.aten


@dataclass(frozen=True)
class GatherIntegers(Pass):
    """Lets embeddings look up integers and dequantize the rows that they found.

    ``embedding(dequantize(table), ids)`` as quantize-embeddings writes it dequantizes the table at
    every call. Targets that would do so run this pass first; the result is equal bit for bit:

        embedding(table, ids) * scale[ids]

    Skips nothing: zero points of such tables are 0 by construction, with one scale for each row.

    >>> import torch
    >>> from sparsefx import capture, Pipeline
    >>> from sparsefx.testing import graph_text
    >>> model = torch.nn.Embedding(9, 4).eval()
    >>> program = capture(model, {"input": torch.tensor([[1, 2, 3]])})
    >>> lowered = Pipeline.parse("quantize-embeddings,gather-integers").run(program)
    >>> print(graph_text(lowered), end="")
    %embedding_1 = aten.embedding(%weight, %input_1)
    %to = aten.to.dtype(%embedding_1, float32)
    %unsqueeze = aten.unsqueeze(%weight_scale, -1)
    %embedding_2 = aten.embedding(%unsqueeze, %input_1)
    %mul = aten.mul.Tensor(%to, %embedding_2)
    return {output: %mul}
    """

    name: ClassVar[str] = "gather-integers"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Rewrite every embedding of an integer table."""
        rewriter = ctx.rewriter
        lookups = program.graph.find_nodes(op="call_function", target=aten.embedding.default)
        found = [node for node in lookups if _is_dequantized(node.args[0])]
        for lookup in found:
            floats, ids, *rest = lookup.args
            table, scale = floats.args[:2]
            with rewriter.before(lookup):
                integers = rewriter.call(aten.embedding.default, table, ids, *rest)
                rows = rewriter.call(aten.to.dtype, integers, torch.float32)
                column = rewriter.call(aten.unsqueeze.default, scale, -1)
                steps = rewriter.call(aten.embedding.default, column, ids)
                product = rewriter.call(aten.mul.Tensor, rows, steps)
            rewriter.replace(lookup, product)
            rewriter.erase_unused([floats])
        return PassReport(len(found))


def _is_dequantized(table: object) -> bool:
    return isinstance(table, fx.Node) and table.target is torch.ops.sparsefx.dequantize.default
