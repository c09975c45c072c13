"""Where tokens enter a graph, and where it predicts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.joined import TEACHER_PREFIX
from sparsefx.passes.analyses.dataflow import origin, weight_of

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["lookups", "masked_lm_output", "token_table"]

aten = torch.ops.aten


def lookups(program: Program) -> list[tuple[fx.Node, str]]:
    """Return each input that is looked up in an embedding table, with the name of the table.

    What a teacher that was joined to the graph looks up is left out.
    """
    found = []
    for node in program.graph.find_nodes(op="call_function", target=aten.embedding.default):
        indices, table = origin(node.args[1]), weight_of(node)
        if indices.op == "placeholder" and table and not table.startswith(TEACHER_PREFIX):
            found.append((indices, table))
    return found


def token_table(program: Program, *, who: str) -> tuple[fx.Node, str]:
    """Return the input of token ids, and the name of the table that they are looked up in.

    Of several tables (tokens, positions, segments) it is the one with most rows.

    Raises:
        PassError: No input is looked up in a table.
    """
    found = lookups(program)
    if not found:
        raise PassError(
            "no input is looked up in an embedding table",
            who=who,
            hint="capture a model that takes token ids",
        )
    return max(found, key=lambda pair: program.tensor(pair[1]).shape[0])


def masked_lm_output(program: Program) -> str | None:
    """Return the output [batch, sequence, vocabulary]; None when there is none."""
    found = lookups(program)
    if not found:
        return None
    rows = max(program.tensor(table).shape[0] for _, table in found)
    for name, node in program.outputs().items():
        fact = program.shape_of(node)
        if fact is not None and len(fact.dims) == 3 and fact.dims[-1] == rows:
            return name
    return None
