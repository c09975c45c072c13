"""SparsityStats: how many weights are zero, and how small that makes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from sparsefx.analysis import Analysis
from sparsefx.joined import DISTILL_PREFIX, TEACHER_PREFIX
from sparsefx.masks import find_masks
from sparsefx.names import natural
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import Role

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Share", "Sparsity", "SparsityStats", "TensorSparsity"]


@dataclass(frozen=True)
class Share:
    """How many of a number of values are zero, and what they take to store.

    Attributes:
        values: All values.
        zeros: Those that are zero.
        dense_bytes: All values in float32.
        value_bytes: The values that are not zero, in their own dtype, without any index: what the
            papers count.
        stored_bytes: With an index: for each tensor the smaller of dense storage and the
            non-zeros beside a bitmap of one bit for each value.
    """

    values: int
    zeros: int
    dense_bytes: int
    value_bytes: int
    stored_bytes: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.values if self.values else 0.0

    @property
    def paper_ratio(self) -> float:
        """Float32 size over the size of the non-zeros alone (90 % and int8: 40)."""
        return self.dense_bytes / self.value_bytes if self.value_bytes else float("inf")

    @property
    def stored_ratio(self) -> float:
        """Float32 size over the size with an index (90 % and int8: 17.8)."""
        return self.dense_bytes / self.stored_bytes if self.stored_bytes else float("inf")


@dataclass(frozen=True)
class TensorSparsity:
    """One trained tensor: its name, role, shape and share of zeros; zeros of masks count."""

    name: str
    role: Role
    shape: tuple[int, ...]
    share: Share


@dataclass(frozen=True)
class Sparsity:
    """The trained tensors of a Program, each once, sorted by name: layer 2 before layer 10.

    Masks, observers, scales and a teacher are no part of the model and are not counted.
    """

    tensors: tuple[TensorSparsity, ...]

    def share(self, wanted: Callable[[TensorSparsity], bool]) -> Share:
        """Return the sum over the tensors that are wanted."""
        return _total(item.share for item in self.tensors if wanted(item))

    @property
    def encoder(self) -> Share:
        """The linears of the encoder: what the papers' sparsity is the sparsity of."""
        return self.share(lambda item: item.role is Role.ENCODER and len(item.shape) > 1)

    @property
    def whole(self) -> Share:
        """The whole model, embeddings, biases and norms included."""
        return self.share(lambda item: True)

    def of(self, name: str) -> TensorSparsity:
        """Return one tensor; KeyError when it is none of the model's."""
        for item in self.tensors:
            if item.name == name:
                return item
        raise KeyError(name)


class SparsityStats(Analysis[Sparsity]):
    """Counts zeros.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> program = small_program(torch.nn.Linear(16, 8), input=torch.ones(1, 16))
    >>> pruned = Pipeline.parse("magnitude-prune{sparsity=0.75,roles=other}").run(program)
    >>> whole = pruned.facts(SparsityStats).whole
    >>> whole.zeros, whole.values, whole.stored_bytes
    (96, 136, 176)
    """

    reads_values: ClassVar[bool] = True

    @classmethod
    def compute(cls, program: Program) -> Sparsity:
        """Return the counts."""
        roles = program.facts(EncoderStructure).roles
        masks = {site.weight: site.mask for site in find_masks(program)}
        found = []
        for name, tensor in program.named_tensors().items():
            if name.startswith((TEACHER_PREFIX, DISTILL_PREFIX)):
                continue
            if not isinstance(tensor, nn.Parameter) and name not in roles:
                continue
            mask = program.tensor(masks[name]) if name in masks else None
            role = roles.get(name, Role.OTHER)
            found.append(TensorSparsity(name, role, tuple(tensor.shape), _share(tensor, mask)))
        return Sparsity(tuple(sorted(found, key=lambda item: natural(item.name))))


@torch.no_grad()
def _share(tensor: Tensor, mask: Tensor | None) -> Share:
    values = tensor.numel()
    nonzero = int(torch.count_nonzero(tensor if mask is None else tensor * mask))
    size = tensor.element_size()
    bitmap = -(-values // 8)
    return Share(
        values,
        values - nonzero,
        dense_bytes=values * 4,
        value_bytes=nonzero * size,
        stored_bytes=min(values * size, nonzero * size + bitmap),
    )


def _total(shares: Iterable[Share]) -> Share:
    counts = [astuple(share) for share in shares] or [(0, 0, 0, 0, 0)]
    return Share(*map(sum, zip(*counts, strict=True)))
