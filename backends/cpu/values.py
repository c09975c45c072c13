"""What a graph node has become while a Program is lowered."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, fx

from sparsefx.backends.cpu.plan import Buffer

__all__ = ["Embedded", "Heads", "Octets", "Parts", "Rows", "Scores", "Value"]


@dataclass(frozen=True)
class Rows:
    """fp32 [batch, sequence, channels] or [batch, channels]: rows of a buffer.

    `first` is not 0 for a part of a fused linear. With `code`, (scale, zero point), the buffer
    holds the uint8 codes of these values; only attention reads such rows.
    """

    buffer: Buffer
    first: int = 0
    count: int = 0
    code: tuple[float, int] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer."""
        complete = self.first == 0 and self.count in (0, self.buffer.rows)
        return complete and self.code is None


@dataclass(frozen=True)
class Parts:
    """Rows cut along the channels, as a fused query, key and value linear is."""

    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class Octets:
    """uint8 rows with their quantization; `floats` marks the value after dequantize."""

    buffer: Buffer
    scale: float
    zero_point: int
    floats: bool = False


@dataclass(frozen=True)
class Heads:
    """Rows seen as heads: `order` names the dimensions, b s h d in some order."""

    rows: Rows
    heads: int
    size: int
    order: str = "bshd"

    def swap(self, a: int, b: int) -> Heads:
        """After exchanging two dimensions."""
        letters = list(self.order)
        letters[a], letters[b] = letters[b], letters[a]
        return replace(self, order="".join(letters))


@dataclass(frozen=True)
class Scores:
    """Attention that is spelled out: scaled, perhaps masked, perhaps after softmax."""

    query: Heads
    key: Heads
    scale: float = 1.0
    mask: fx.Node | None = None
    weights: bool = False


@dataclass(frozen=True)
class Embedded:
    """A sum of embeddings that is not written yet: tables and the nodes of their indices."""

    tables: tuple[Tensor, ...]
    indices: tuple[fx.Node, ...]


Value = Rows | Parts | Octets | Heads | Scores | Embedded
