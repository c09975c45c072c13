"""Where the hidden features of an encoder lie: the values that hold them, the tensors they cut."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.passes.analyses.dataflow import is_linear, is_norm, last_dim
from sparsefx.passes.analyses.encoder import EncoderLayer
from sparsefx.passes.analyses.operators import (
    CASTS,
    COPIES,
    DROPOUTS,
    ELEMENTWISE,
    PARTS,
    RESHAPES,
)
from sparsefx.passes.structure.head_axes import with_entry

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["HiddenStream", "trace_hidden"]

aten = torch.ops.aten

_KEEPS = COPIES | CASTS | DROPOUTS | ELEMENTWISE
_PICKS = PARTS | {aten.index.Tensor, aten.index_select.default, operator.getitem}
_SUMS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.linalg_vector_norm.default}


@dataclass
class HiddenStream:
    """What :func:`trace_hidden` found.

    Attributes:
        width: Number of hidden features.
        nodes: Nodes whose last dimension holds them.
        cuts: Dimensions of tensors that hold them, by tensor name.
        sizes: Entries of list arguments that hold their number: node, argument, entry.
        reason: Why they cannot become fewer; empty when they can.
    """

    width: int
    nodes: set[fx.Node] = field(default_factory=set)
    cuts: dict[str, set[int]] = field(default_factory=dict)
    sizes: set[tuple[fx.Node, int, int]] = field(default_factory=set)
    reason: str = ""

    def arguments(self, node: fx.Node, args: Sequence[Any], width: int) -> list[Any]:
        """Return arguments of a node for another width."""
        found = list(args)
        for counted, place, entry in self.sizes:
            if counted is node:
                found[place] = with_entry(found[place], entry, width)
        return found


class _FixedError(Exception):
    """Ends the walk; the text is the reason."""


def trace_hidden(program: Program, layers: Sequence[EncoderLayer]) -> HiddenStream:
    """Follow the hidden states from the embeddings through all layers, forwards and backwards."""
    found = HiddenStream(last_dim(layers[0].input))
    try:
        _Walk(program, layers, found).run()
    except _FixedError as error:
        found.reason = str(error)
    return found


class _Walk:
    def __init__(
        self, program: Program, layers: Sequence[EncoderLayer], found: HiddenStream
    ) -> None:
        self._program = program
        self._found = found
        self._waiting = [node for each in layers for node in (each.input, each.hidden)]
        self._inside = {site.node for layer in layers for site in layer.linears}

    def run(self) -> None:
        while self._waiting:
            node = self._waiting.pop()
            if node in self._found.nodes:
                continue
            self._found.nodes.add(node)
            self._behind(node)
            for user in node.users:
                self._ahead(node, user)

    def _wide(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and last_dim(value) == self._found.width

    def _cut(self, value: Any, dim: int) -> None:
        if value is None:
            return
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            raise _FixedError(f"%{value} is computed, and holds hidden features")
        self._found.cuts.setdefault(str(value.target), set()).add(dim)

    def _behind(self, node: fx.Node) -> None:
        """Follow a value with hidden features to what made it."""
        args: tuple[Any, ...] = node.args
        if node.op == "get_attr":
            self._cut(node, self._program.tensor(str(node.target)).dim() - 1)
        elif is_linear(node):
            self._cut(args[1], 0)
            self._cut(args[2] if len(args) > 2 else None, 0)
        elif node.target is aten.embedding.default:
            self._cut(args[0], 1)
        elif is_norm(node):
            self._norm(node)
        elif node.target in _KEEPS:
            self._waiting += [arg for arg in node.all_input_nodes if self._wide(arg)]
        elif node.target in RESHAPES | _PICKS | _SUMS and self._wide(args[0]):
            self._note_sizes(node)
            self._waiting.append(args[0])
        else:
            raise _FixedError(f"%{node.name} ({node.target}) is not known to keep hidden features")

    def _norm(self, node: fx.Node) -> None:
        args: tuple[Any, ...] = node.args
        if list(args[1]) != [self._found.width]:
            raise _FixedError(f"%{node.name} normalises more than hidden features")
        self._found.sizes.add((node, 1, 0))
        self._waiting.append(args[0])
        for tensor in args[2:4]:
            self._cut(tensor if isinstance(tensor, fx.Node) else None, 0)

    def _note_sizes(self, node: fx.Node) -> None:
        if node.target not in RESHAPES:
            return
        for place, sizes in enumerate(node.args):
            if isinstance(sizes, (list, tuple)) and sizes and sizes[-1] == self._found.width:
                self._found.sizes.add((node, place, len(sizes) - 1))

    def _ahead(self, node: fx.Node, user: fx.Node) -> None:
        """Follow a value with hidden features to what reads it."""
        if user.op == "output" or not isinstance(user.meta.get("val"), (Tensor, list, tuple)):
            return
        if is_linear(user):
            if user.args[0] is node:
                self._read(user)
        elif user.target in _SUMS and not self._wide(user):
            return
        elif self._wide(user) or user.target is operator.getitem:
            self._waiting.append(user)
        else:
            raise _FixedError(f"%{user.name} ({user.target}) is not known to keep hidden features")

    def _read(self, linear: fx.Node) -> None:
        """A linear reads them; one outside of the layers that makes as many makes them anew."""
        self._cut(linear.args[1], 1)
        if linear not in self._inside and self._wide(linear):
            self._waiting.append(linear)
