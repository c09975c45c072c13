"""Why a graph could not run: what PyTorch says of an index becomes what is wrong with an input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.errors import DataError, ProgramError
from sparsefx.inputs.lengths import check_length

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["check_rows", "explained", "fault_of"]

_HINT = "the tokenizer has to be the model's own, and no text longer than the model takes"


@contextmanager
def explained(program: Program, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Turn failures to run ``program`` that its inputs are the reason of into errors that say so.

    Checking before each call would cost every call; the graph is looked at only once it failed.

    Raises:
        ProgramError: An id outside a table, with the input, the table and its rows; or sequences
            longer than the model has positions for.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        found = fault_of(program, batch)
        if found is None:
            raise
        raise found from error


def fault_of(program: Program, batch: Mapping[str, Tensor]) -> ProgramError | None:
    """Return what is wrong with inputs that ``program`` failed on; None when nothing is known."""
    return _too_long(program, batch) or _outside_table(program, batch)


def check_rows(program: Program, batch: Mapping[str, Tensor]) -> None:
    """Look up the embeddings of inputs alone, for who times a model without running it.

    Raises:
        ProgramError: An index lies outside its table, as those of positions do in long sequences.
    """
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    inner: set[fx.Node] = set()
    lookups = []
    for node in program.graph.nodes:
        if any(each in inner for each in node.all_input_nodes):
            inner.add(node)
        elif node.target is torch.ops.aten.embedding.default:
            inner.add(node)
            lookups.append(node)
    graph.graph_copy(program.graph, known)
    graph.output(tuple(known[node] for node in lookups))
    module = fx.GraphModule(program.module, graph)
    module.graph.eliminate_dead_code()
    with torch.no_grad():
        _Lookups(module).run(*(batch[name] for name in program.signature.input_names))


def _outside_table(program: Program, batch: Mapping[str, Tensor]) -> ProgramError | None:
    """Look up every embedding as far as the graph runs; None when all rows are there."""
    try:
        with torch.no_grad():
            _Lookups(program.module).run(*(batch[name] for name in program.signature.input_names))
    except ProgramError as error:
        return error
    except (IndexError, RuntimeError):
        return None
    return None


class _Lookups(fx.Interpreter):
    """Runs a graph and refuses rows that a table does not have."""

    def run_node(self, n: fx.Node) -> Any:
        if n.target is torch.ops.aten.embedding.default:
            table, index = (self.map_nodes_to_values(each, n) for each in n.args[:2])
            _check_rows(n, table, index)  # type: ignore[arg-type]  # tensors, as the schema says
        return super().run_node(n)


def _check_rows(lookup: fx.Node, table: Tensor, index: Tensor) -> None:
    low, high, rows = int(index.min()), int(index.max()), table.shape[0]
    if low < 0 or high >= rows:
        name, asked = (_name_of(node) for node in lookup.args[:2])
        raise ProgramError(
            f"{low if low < 0 else high} is outside the table {name!r}, which has {rows} rows",
            who="program",
            where=asked,
            hint=_HINT,
        )


def _name_of(node: object) -> str:
    """Return the name of an input or tensor, and of what is computed the node's."""
    named = isinstance(node, fx.Node) and node.op in ("placeholder", "get_attr")
    return str(node.target) if named else f"%{node}"  # type: ignore[attr-defined]  # a node


def _too_long(program: Program, batch: Mapping[str, Tensor]) -> ProgramError | None:
    tokens = max((value.shape[1] for value in batch.values() if value.dim() > 1), default=0)
    try:
        check_length(program.config, tokens)
    except DataError as error:
        return ProgramError(error.why, who="program", where="sequence", hint=error.hint)
    return None
