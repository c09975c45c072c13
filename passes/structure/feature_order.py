"""Whether hidden features may change places: what stands between their makers and their reader."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.graph.printing import node_and_op
from sparsefx.passes.analyses.dataflow import data_inputs
from sparsefx.passes.analyses.operators import (
    CASTS,
    COPIES,
    DROPOUTS,
    ELEMENTWISE,
    PARTS,
    REORDERS,
    RESHAPES,
)

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["why_order_matters"]

aten = torch.ops.aten
_ops = torch.ops.sparsefx
_KEEPS = COPIES | CASTS | DROPOUTS
_MOVES = RESHAPES | REORDERS | PARTS
_ALONE = ELEMENTWISE | {_ops.quantize.default, _ops.dequantize.default}
_VALUE_OF: dict[Any, int] = {
    aten.matmul.default: 1,
    aten.bmm.default: 1,
    aten.scaled_dot_product_attention.default: 2,
}


def why_order_matters(
    program: Program, makers: Sequence[fx.Node], reader: fx.Node, groups: int = 1
) -> str:
    """Return why the features from ``makers`` to ``reader`` cannot change places; else ``""``.

    Every tensor between is labelled: each element with the number of the feature it was made from,
    for small sizes of the dynamic dimensions. An operator passes when it works on each feature
    alone; the reader has to see the features in the order in which they were made.

    Args:
        program: The Program.
        makers: Linears that make the features, each all of them, ``[..., features]``.
        reader: The linear that reads them.
        groups: Features change places within one of so many groups of neighbours (attention heads).
    """
    return _Labels(program, makers, reader, groups).reason()


class _OrderMattersError(Exception):
    """Ends the walk; the text is the reason."""


class _Labels:
    def __init__(
        self, program: Program, makers: Sequence[fx.Node], reader: fx.Node, groups: int
    ) -> None:
        names = {dim for spec in program.signature.inputs for dim in spec.dims if type(dim) is str}
        self._sizes = {name: 2 + index for index, name in enumerate(sorted(names))}
        self._program = program
        self._reader = reader
        self._makers = makers
        self._features = torch.arange(self._shape(makers[0])[-1])
        self._group = len(self._features) // groups
        self._labels = {maker: self._features.expand(self._shape(maker)) for maker in makers}

    def reason(self) -> str:
        try:
            reached = self._reaches()
        except _OrderMattersError as error:
            return str(error)
        return "" if reached else f"they do not reach %{self._reader.name}"

    def _reaches(self) -> bool:
        """Label all that the makers' values enter; whether the reader is among it."""
        waiting = [user for maker in self._makers for user in maker.users]
        heapq.heapify(waiting)  # by place in the graph: what a node reads is labelled before it
        seen: set[fx.Node] = set()
        while waiting:
            node = heapq.heappop(waiting)
            if node in seen:
                continue
            seen.add(node)
            if self._reads(node):
                self._labels[node] = self._label(node)
                for user in node.users:
                    heapq.heappush(waiting, user)
        return self._reader in seen

    def _reads(self, node: fx.Node) -> bool:
        """Whether labelled values enter ``node``; the reader ends the walk."""
        if node.op == "output":
            raise _OrderMattersError("they are an output of the program")
        if node is self._reader:
            self._check_reader()
            return False
        if node.target in _KEEPS | _MOVES:
            return node.args[0] in self._labels
        is_value = isinstance(node.meta.get("val"), (Tensor, list, tuple))
        return is_value and any(arg in self._labels for arg in data_inputs(node))

    def _check_reader(self) -> None:
        found = self._labels.get(self._reader.args[0])  # type: ignore[arg-type]  # a linear's input
        if found is None or not torch.equal(found, self._features.expand(found.shape)):
            raise _OrderMattersError(f"%{self._reader.name} reads them in another order or shape")

    def _label(self, node: fx.Node) -> Tensor:
        if node.target in _KEEPS:
            return self._labels[node.args[0]]  # type: ignore[index]  # a node, by _reads
        if node.target in _MOVES:
            return self._moved(node)
        if node.target in _ALONE:
            return self._elementwise(node)
        if node.target in _VALUE_OF:
            return self._product(node)
        raise _OrderMattersError(f"{node_and_op(node)} is not known to work on each feature alone")

    def _moved(self, node: fx.Node) -> Tensor:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._argument)
        moved = node.target(*args, **kwargs)  # type: ignore[operator]  # an ATen operator
        if not isinstance(moved, Tensor):
            raise _OrderMattersError(f"{node_and_op(node)} takes them apart")
        return moved

    def _argument(self, node: fx.Node) -> Any:
        if node in self._labels:
            return self._labels[node].contiguous()  # labels are expanded, which no view takes
        return self._program.shapes.size(node.meta["val"], self._sizes)

    def _elementwise(self, node: fx.Node) -> Tensor:
        shape = self._shape(node)
        labelled = [arg for arg in node.all_input_nodes if arg in self._labels]
        result = self._labels[labelled[0]].expand(shape)
        for arg in labelled[1:]:
            if not torch.equal(self._labels[arg].expand(shape), result):
                raise _OrderMattersError(f"{node_and_op(node)} joins different features")
        for arg in node.all_input_nodes:
            other = self._shape(arg)
            if arg not in self._labels and any(
                size != 1 and _varies(result, place)
                for place, size in zip(range(-1, -len(other) - 1, -1), reversed(other), strict=True)
            ):
                raise _OrderMattersError(
                    f"{node_and_op(node)} gives each feature a value of its own from %{arg.name}"
                )
        return result

    def _product(self, node: fx.Node) -> Tensor:
        """Rows are mixed, and each group in one matrix: that of its attention head."""
        value = node.args[_VALUE_OF[node.target]]
        others = [arg for arg in node.all_input_nodes if arg in self._labels and arg is not value]
        shape = self._shape(node)
        labels = self._labels.get(value)  # type: ignore[arg-type]  # None for what is no node
        if others or labels is None or labels.dim() < 2 or labels.shape[:-2] != shape[:-2]:
            raise _OrderMattersError(f"{node_and_op(node)} sums over the features")
        first = labels[..., :1, :]
        ordered = first.sort(dim=-1).values
        whole = ordered[..., :1] + torch.arange(self._group)
        in_groups = ordered.shape == whole.shape and torch.equal(ordered, whole)
        if not in_groups or bool((ordered[..., 0] % self._group).any()) or _varies(labels, -2):
            raise _OrderMattersError(f"{node_and_op(node)} mixes features of several groups")
        return first.expand(shape)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return ()
        return tuple(self._program.shapes.size(size, self._sizes) for size in value.shape)


def _varies(labels: Tensor, dim: int) -> bool:
    return not torch.equal(labels, labels.narrow(dim, 0, 1).expand(labels.shape))
