"""Weights, scales and bias of a linear, read from the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators named below
from sparsefx.backends.cpu.analyses.values import Kept, Octets, Value

if TYPE_CHECKING:
    from sparsefx.backends.cpu.lowering.walk import Walk

__all__ = ["Weights", "joined_weights", "read_weights"]

_DEQUANTIZE = torch.ops.sparsefx.dequantize.default


@dataclass(frozen=True)
class Weights:
    """A weight [rows, columns] with what turns sums into values."""

    matrix: NDArray[Any]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def rows(self, start: int, stop: int) -> Weights:
        """Some of the rows."""
        return Weights(*(part[start:stop] for part in (self.matrix, self.scale, self.bias)))

    def kept(self, rows: Kept | None, columns: Kept | None) -> Weights:
        """Without the rows that nothing reads and the columns that nothing is written to."""
        found = self
        if rows is not None:
            parts = (self.matrix, self.scale, self.bias)
            found = Weights(*(np.ascontiguousarray(part[rows.channels]) for part in parts))
        if columns is None:
            return found
        narrow = np.ascontiguousarray(found.matrix[:, columns.channels])
        return Weights(narrow, found.scale, found.bias)


def joined_weights(parts: Sequence[Weights]) -> Weights:
    """The rows of several linears on the same input, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Weights(
        np.concatenate([w.matrix for w in parts]),
        np.concatenate([w.scale for w in parts]),
        np.concatenate([w.bias for w in parts]),
    )


def read_weights(walk: Walk, node: fx.Node, source: Value) -> Weights | None:
    """Weight, scales and bias of a linear; int8 if it and its input are quantized."""
    _, weight, bias = (*node.args, None)[:3]
    assert isinstance(weight, fx.Node)
    constant = walk.host.constant
    matrix, scale = None, None
    if isinstance(source, Octets) and weight.target is _DEQUANTIZE:
        matrix, scale = _integers(walk, weight)
    if matrix is None:
        full = constant(weight)
        if full is None:
            return None
        matrix, scale = full.detach().float().numpy(), np.ones(1, np.float32)
    assert scale is not None
    rows = matrix.shape[0]
    offset: Tensor | None = constant(bias) if isinstance(bias, fx.Node) else None
    if offset is None and isinstance(bias, fx.Node):
        return None
    added = np.zeros(rows, np.float32) if offset is None else offset.detach().float().numpy()
    factor = source.scale if matrix.dtype == np.int8 and isinstance(source, Octets) else 1.0
    wide = np.broadcast_to(scale.astype(np.float32) * np.float32(factor), (rows,))
    return Weights(matrix, np.ascontiguousarray(wide), added)


def _integers(walk: Walk, node: fx.Node) -> tuple[NDArray[Any] | None, NDArray[np.float32] | None]:
    """int8 weight and its scales behind a symmetric dequantize, else (None, None)."""
    q, scale, zero = (walk.host.constant(n) for n in node.args[:3])  # type: ignore[arg-type]
    axis = node.args[3] if len(node.args) > 3 else node.kwargs.get("axis")
    if q is None or scale is None or zero is None or q.dtype != torch.int8:
        return None, None
    if bool(zero.any()) or axis not in (None, 0):
        return None, None
    return q.numpy(), scale.float().reshape(-1).numpy()
