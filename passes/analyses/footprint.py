"""Footprint: what the weights of a Program weigh, counted in the two ways of this field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefx.analysis import Analysis
from sparsefx.masks import find_masks
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import DISTILL_PREFIX, TEACHER_PREFIX, Role

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Footprint", "FootprintTable", "WeightFootprint"]


@dataclass(frozen=True)
class WeightFootprint:
    """One tensor, counted once however many names it has.

    Attributes:
        name: In the graph.
        role: What it is for; None for vectors and constants.
        shape: As stored.
        nonzero: Values other than 0, after its mask.
        value_bits: Bits of one value, e.g. 8 for int8.
    """

    name: str
    role: Role | None
    shape: tuple[int, ...]
    nonzero: int
    value_bits: int

    @property
    def size(self) -> int:
        """Number of values, zeros included."""
        return torch.Size(self.shape).numel()

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1.0 - self.nonzero / self.size if self.size else 0.0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the smaller of: all values; the non-zero values and one bit for each place."""
        dense = self.size * self.value_bits
        bitmap = self.nonzero * self.value_bits + self.size
        return -(-min(dense, bitmap) // 8)


@dataclass(frozen=True)
class FootprintTable:
    """All tensors, and sums over them.

    ``encoder`` figures count the encoder's linears alone, as the papers do; ``total`` figures the
    whole model with embeddings, biases and norms.
    """

    weights: tuple[WeightFootprint, ...]

    @property
    def encoder(self) -> tuple[WeightFootprint, ...]:
        """The linears of the encoder."""
        return tuple(weight for weight in self.weights if weight.role is Role.ENCODER)

    @property
    def encoder_sparsity(self) -> float:
        """Share of zeros in the encoder's linears."""
        return _sparsity(self.encoder)

    @property
    def total_sparsity(self) -> float:
        """Share of zeros in all tensors."""
        return _sparsity(self.weights)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole model, indices included."""
        return sum(weight.stored_bytes for weight in self.weights)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the whole model as dense float32."""
        return 4 * sum(weight.size for weight in self.weights)

    @property
    def paper_ratio(self) -> float:
        """Compression as the papers count: encoder, non-zero values alone, no index storage.

        A dense float32 encoder has 1; 90 % zeros in int8 have 40.
        """
        dense = 32 * sum(weight.size for weight in self.encoder)
        kept = sum(weight.nonzero * weight.value_bits for weight in self.encoder)
        return dense / kept if kept else float("inf")

    @property
    def stored_ratio(self) -> float:
        """Compression of the whole model, indices included."""
        return self.dense_bytes / self.stored_bytes if self.stored_bytes else float("inf")


class Footprint(Analysis[FootprintTable]):
    """Counts values, zeros and bytes; leaves out teachers, masks and projections of distillation.

    >>> import torch
    >>> from sparsefx.testing import small_program
    >>> program = small_program(torch.nn.Linear(64, 2, bias=False), input=torch.randn(1, 64))
    >>> with torch.no_grad():
    ...     _ = program.tensor("weight")[:, :60].zero_()
    >>> table = program.facts(Footprint)
    >>> table.total_sparsity, table.stored_bytes, table.dense_bytes
    (0.9375, 48, 512)
    """

    reads_values = True

    @classmethod
    def compute(cls, program: Program) -> FootprintTable:
        """Return the table, in the order of names."""
        sites = {site.weight: site.mask for site in find_masks(program)}
        masks = set(sites.values())
        roles = program.facts(EncoderStructure).roles
        weights = []
        for name, tensor in program.named_tensors().items():
            if name in masks or name.startswith((TEACHER_PREFIX, DISTILL_PREFIX)):
                continue
            mask = program.tensor(sites[name]) if name in sites else None
            kept = int(torch.count_nonzero(tensor if mask is None else tensor * mask))
            shape = tuple(tensor.shape)
            weights.append(WeightFootprint(name, roles.get(name), shape, kept, _bits(tensor)))
        return FootprintTable(tuple(weights))


def _bits(tensor: Tensor) -> int:
    return 8 * tensor.element_size()


def _sparsity(weights: tuple[WeightFootprint, ...]) -> float:
    size = sum(weight.size for weight in weights)
    return 1.0 - sum(weight.nonzero for weight in weights) / size if size else 0.0
