"""What a graph node has become while a Program is lowered.

A value is where the numbers lie; how the node's dimensions lie in it is the node's layout
(`layouts`). Views and transposes share the value of what they view.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.backends.cpu.plan.plan import Buffer

__all__ = [
    "Embedded",
    "Heads",
    "Kept",
    "Length",
    "Live",
    "Mask",
    "Octets",
    "Projected",
    "Relative",
    "Rows",
    "Scaled",
    "Scores",
    "Table",
    "Term",
    "Value",
]


@dataclass(frozen=True, eq=False)
class Kept:
    """Channels of a node that are computed, in order, where they are not all."""

    channels: NDArray[np.intp]


@dataclass(frozen=True)
class Live:
    """What is left of linears and attentions, where it is not all.

    Attributes:
        rows: Rows of linears.
        columns: Columns of linears, which are the channels of what they read.
        heads: Heads of attentions, by their last node.
    """

    rows: dict[fx.Node, Kept] = field(default_factory=dict)
    columns: dict[fx.Node, Kept] = field(default_factory=dict)
    heads: dict[fx.Node, Kept] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """fp32 rows of a buffer: one row for each channel.

    `first` is the row where channel 0 of the node lies: not 0 for a part of a fused linear. With
    `code`, (scale, zero point), the buffer holds the uint8 codes of these values; only attention
    reads such rows. `kept` are the channels of the node that have a row, if not all have one.
    """

    buffer: Buffer
    first: int = 0
    code: tuple[float, int] | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Octets:
    """uint8 rows with their quantization; `floats` marks the value after dequantize."""

    buffer: Buffer
    scale: float
    zero_point: int
    floats: bool = False
    kept: Kept | None = None


@dataclass(frozen=True)
class Scaled:
    """Rows times a number, which only attention scores take along."""

    rows: Rows
    factor: float


@dataclass(frozen=True)
class Heads:
    """Rows seen as heads: order "bsd", or "bds" with the channels of a head before its tokens."""

    rows: Rows
    order: str
    heads: int
    size: int
    factor: float = 1.0


@dataclass(frozen=True)
class Mask:
    """What is added to scores, or hides keys.

    Attributes:
        node: Its node, which depends on no activation.
        hides: Whether it is True where a key is hidden.
        joined: Whether the scores have batch and heads in one dimension.
    """

    node: fx.Node
    hides: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Projected:
    """Products of heads with a table that depends on no activation, [..., size, embeddings]."""

    heads: Heads
    table: fx.Node


@dataclass(frozen=True)
class Term:
    """Products of heads with embeddings of relative positions, as they are added to scores.

    Attributes:
        heads: Query or key.
        table: Node of the embeddings, [..., size, embeddings].
        index: Node of the embedding for each token of `heads` and each other token.
        of_keys: Whether `heads` are the last dimension of the term, as the keys are of scores.
        factor: A factor.
    """

    heads: Heads
    table: fx.Node
    index: fx.Node
    of_keys: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Relative:
    """A sum of terms that are added to scores."""

    terms: tuple[Term, ...]

    def scaled(self, factor: float) -> Relative:
        """All of it times a number."""
        return Relative(tuple(replace(t, factor=t.factor * factor) for t in self.terms))

    def transposed(self) -> Relative:
        """With query and key exchanged."""
        return Relative(tuple(replace(t, of_keys=not t.of_keys) for t in self.terms))


@dataclass(frozen=True)
class Scores:
    """Attention that is spelled out: scaled, perhaps with masks, perhaps after softmax."""

    query: Heads
    key: Heads
    scale: float = 1.0
    masks: tuple[Mask, ...] = ()
    weights: bool = False
    relative: Relative = Relative(())


@dataclass(frozen=True)
class Length:
    """The Euclidean length of every token's rows, `least` at least."""

    rows: Rows
    least: float


@dataclass(frozen=True)
class Table:
    """A table of embeddings.

    Attributes:
        rows: [rows, channels], int8 where each row has a scale.
        scales: The scale of each row, fp32; None if rows are floats.
    """

    rows: Tensor
    scales: Tensor | None = None

    def scaled(self, factor: float) -> Table:
        """All of it times a number."""
        if self.scales is None:
            return Table(self.rows * factor)
        return Table(self.rows, self.scales * factor)


@dataclass(frozen=True)
class Embedded:
    """A sum of embeddings that is not written yet: tables and the nodes of their indices.

    An index without a node counts the tokens of a sequence.
    """

    tables: tuple[Table, ...]
    indices: tuple[fx.Node | None, ...]


Value = Rows | Octets | Scaled | Projected | Relative | Scores | Length | Embedded
