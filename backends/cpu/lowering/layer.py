"""What was decided for a linear: how it is computed, and what else was possible."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.cpu.lowering.costs import Choice
from sparsefx.backends.cpu.plan.weights import Format

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """What was decided for one linear kernel.

    Attributes:
        nodes: The graph's linears that it computes.
        weights: The names of their weights.
        rows, columns: Shape of the weight.
        nonzeros: Weights that are not zero.
        integer: int8 arithmetic.
        space: TOKENS, or SEQUENCES where it computes one row for each sequence (a pooler).
        format: The format it got, the cheapest unless one was asked for.
        choice: Candidates and costs.
        packed_bytes: Bytes of the packed weights.
        dropped: Rows that nothing reads and columns of channels that are not computed: left out
            of the shape.
    """

    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    rows: int
    columns: int
    nonzeros: int
    integer: bool
    space: int
    format: Format
    choice: Choice
    packed_bytes: int
    dropped: tuple[int, int] = (0, 0)

    @property
    def title(self) -> str:
        """The modules of its weights, such as ``layer.0.attention.self.query+key+value``."""
        first, *others = (name.rpartition(".")[0] or name for name in self.weights)
        parent = first.rpartition(".")[0] + "."
        beside = [other.removeprefix(parent) for other in others]
        _, bracket, rows = self.nodes[0].partition("[")
        return "+".join((first, *beside)) + bracket + rows
