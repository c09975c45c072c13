"""The pass quantize-embeddings: int8 embedding tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.quantize.convert import quantize_weight
from sparsefx.passes.quantize.prepare import WEIGHT_RANGES
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["QuantizeEmbeddings"]

_ops = torch.ops.sparsefx
_EMBEDDING = torch.ops.aten.embedding.default


@dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Stores embedding tables as int8, with one symmetric scale for each row (each token).

    A row of a table is read whole, so a scale of its own costs 4 bytes beside ``hidden`` bytes and
    keeps the error of each value below half a step of that row:

        scale_v = max_j |W_vj| / 127,  Q_vj = round(W_vj / scale_v)

    No data and no training are needed. Embeddings are most of the bytes of a pruned small model,
    and neither SparseBERT nor Prune Once for All touches them; Q8BERT (Zafrir et al. 2019) stores
    them as int8 too, with one scale a table. The table becomes a buffer: it no longer trains.

    What it skips, with a reason: a table that something else reads as well (the tied decoder of a
    masked language model), or that is not float32.

    >>> import torch
    >>> from sparsefx import capture, Pipeline
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    >>> program = capture(model.eval(), {"input": torch.tensor([[1, 2, 3]])})
    >>> small = Pipeline.parse("quantize-embeddings").run(program)
    >>> small.tensor("0.weight").dtype, tuple(small.tensor("0.weight_scale").shape)
    (torch.int8, (9,))
    """

    name: ClassVar[str] = "quantize-embeddings"
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.MASKED, Property.DISTILLING})

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Convert the tables."""
        skipped = []
        saved = applied = 0
        for table in _tables(program):
            name = str(table.target)
            if reason := _unfit(program, table):
                skipped.append(Skip(name, reason))
                continue
            saved += program.tensor(name).numel() * 3 - program.tensor(name).shape[0] * 4
            _store_as_integers(program, ctx.rewriter, table)
            applied += 1
        notes = (f"{applied} tables are int8, {saved / 1e6:.1f} MB less",) if applied else ()
        return PassReport(applied, tuple(skipped), notes)


def _tables(program: Program) -> list[fx.Node]:
    """Return the tensors that embeddings read, in graph order."""
    lookups = program.graph.find_nodes(op="call_function", target=_EMBEDDING)
    read = {node.args[0] for node in lookups}
    return [node for node in program.graph.find_nodes(op="get_attr") if node in read]


def _unfit(program: Program, table: fx.Node) -> str:
    for user in table.users:
        if user.target is not _EMBEDDING or user.args[0] is not table:
            return f"%{user.name} reads it too, and is no embedding"
    dtype = program.tensor(str(table.target)).dtype
    return "" if dtype == torch.float32 else f"it is {dtype}, expected float32"


def _store_as_integers(program: Program, rewriter: Rewriter, table: fx.Node) -> None:
    name = str(table.target)
    weight = program.tensor(name).detach()
    integers, scale = quantize_weight(weight, *WEIGHT_RANGES["narrow"], 0)
    lookups = list(table.users)
    rewriter.set_tensor(name, integers)
    scale_node = rewriter.add_buffer(f"{name}_scale", scale)
    zero_node = rewriter.add_buffer(
        f"{name}_zero_point", torch.zeros_like(scale, dtype=torch.int32)
    )
    with rewriter.before(min(lookups)):
        floats = rewriter.call(_ops.dequantize.default, table, scale_node, zero_node, 0)
    for lookup in lookups:
        rewriter.set_args(lookup, floats, *lookup.args[1:], **lookup.kwargs)
