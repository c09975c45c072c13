"""What an engine is: one vectorised method from real masks to cycles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Skips = Literal["weight", "activation"]

__all__ = [
    "BOTH",
    "WEIGHTS",
    "BoolArray",
    "Engine",
    "Gemm",
    "IntArray",
    "Skips",
    "Timing",
    "ceil_div",
    "group_sum",
]

WEIGHTS: Final[frozenset[Skips]] = frozenset({"weight"})
BOTH: Final[frozenset[Skips]] = frozenset({"weight", "activation"})
"""What engines skip: zeros of the weights, or of both operands."""


@dataclass(frozen=True)
class Gemm:
    """`out[m, n] = sum over k of activation[m, k] * weight[n, k]`, with its non-zeros.

    Attributes:
        m: Rows of activations (tokens).
        n: Rows of weights (output features).
        k: The contracted dimension.
        weight: Non-zeros of the weights, bool `[n, k]`; None means that all are non-zero.
        activation: Non-zeros of the activations, bool `[m, k]`; None means that all are.

    Raises:
        ValueError: If a size is not positive or a mask does not fit the sizes.
    """

    m: int
    n: int
    k: int
    weight: BoolArray | None = field(default=None, repr=False, compare=False)
    activation: BoolArray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.m, self.n, self.k) < 1:
            raise ValueError(f"a GEMM needs positive sizes, found {self.m} x {self.n} x {self.k}")
        for name, mask, shape in (
            ("weight", self.weight, (self.n, self.k)),
            ("activation", self.activation, (self.m, self.k)),
        ):
            if mask is not None and mask.shape != shape:
                raise ValueError(
                    f"the {name} mask is {list(mask.shape)}, the GEMM needs {list(shape)}"
                )

    @property
    def dense_macs(self) -> int:
        """Multiplications of the dense GEMM."""
        return self.m * self.n * self.k

    @property
    def weight_by_k(self) -> IntArray:
        """Non-zero weights for each k, int64 `[k]`."""
        if self.weight is None:
            return np.full(self.k, self.n, np.int64)
        counts: IntArray = np.count_nonzero(self.weight, axis=0)
        return counts

    @property
    def activation_by_k(self) -> IntArray:
        """Non-zero activations for each k, int64 `[k]`."""
        if self.activation is None:
            return np.full(self.k, self.m, np.int64)
        counts: IntArray = np.count_nonzero(self.activation, axis=0)
        return counts

    def macs(self, skips: frozenset[Skips]) -> int:
        """Multiplications left when zeros of the operands in `skips` are left out."""
        weight = self.weight if "weight" in skips else None
        active = self.activation if "activation" in skips else None
        if weight is None:
            count = self.m * self.k if active is None else int(np.count_nonzero(active))
            return count * self.n
        if active is None:
            return int(np.count_nonzero(weight)) * self.m
        return int(self.weight_by_k @ self.activation_by_k)

    @property
    def effectual_macs(self) -> int:
        """Multiplications whose operands are both non-zero."""
        return self.macs(BOTH)


@dataclass(frozen=True)
class Timing:
    """What one engine did with one GEMM.

    Attributes:
        cycles: From the first operand to the last result.
        macs: Multiplications that the engine executed: those it cannot skip.
        fill: Cycles in which the array fills, drains or is configured, part of `cycles`.
        load: Work of each processing element and k block, int64 `[elements, blocks]`, in the
            element's own cycles; None where the notion has no meaning.
    """

    cycles: int
    macs: int
    fill: int = 0
    load: IntArray | None = field(default=None, repr=False, compare=False)


class Engine(ABC):
    """One sparsity engine: the array of multipliers of one core and what it can skip.

    A subclass is a frozen dataclass whose fields are the array's parameters; see
    docs/writing-an-engine.md.
    """

    kind: ClassVar[str]
    skips: ClassVar[frozenset[Skips]] = frozenset()

    @property
    @abstractmethod
    def peak(self) -> int:
        """Multiplications a cycle when every multiplier is busy."""

    @abstractmethod
    def run(self, gemm: Gemm) -> Timing:
        """Time one GEMM with its real non-zeros."""

    @property
    def row_step(self) -> int:
        """Weight rows that the array takes at once; tiles are multiples of it."""
        return 1

    @property
    def column_step(self) -> int:
        """Activation rows that the array takes at once; tiles are not smaller if they can."""
        return 1

    @property
    def k_step(self) -> int:
        """Columns that belong together, as a bank or group; tiles do not cut through them."""
        return 1

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns `N:M` outside of which it skips no zeros; none where it skips any."""
        return ()

    def overhead(self, m: int, n: int, k: int) -> int:
        """Cycles of a dense tile in which the array fills and drains, for the mapper."""
        return 0

    def reads(self, gemm: Gemm, weight_bytes: float, value_bytes: float) -> tuple[float, float]:
        """Bytes read from the core's memory: `(activations, weights)`.

        By default activations are read once for every group of `row_step` weight rows and the
        stored weights once.
        """
        again = ceil_div(gemm.n, self.row_step) if self.row_step > 1 else 1
        return gemm.m * gemm.k * value_bytes * again, weight_bytes


def ceil_div(value: int, by: int) -> int:
    """Round a quotient up.

    >>> ceil_div(7, 2)
    4
    """
    return -(-value // by)


def group_sum(counts: IntArray, size: int, axis: int = 0) -> IntArray:
    """Add up `size` neighbours along `axis`; the last group may be smaller.

    >>> group_sum(np.array([1, 2, 3]), 2).tolist()
    [3, 3]
    """
    starts = np.arange(0, counts.shape[axis], size)
    total: IntArray = np.add.reduceat(counts, starts, axis=axis, dtype=np.int64)
    return total
