"""What the simulator runs: matrix products, vector operations and host fallbacks, in order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np

from sparsefx.backends.accelerator.engines.base import BoolArray, Gemm
from sparsefx.backends.formats.encoding import Int8Array

__all__ = ["FLOAT_PRODUCT", "HostOp", "MatmulOp", "Op", "VectorOp", "Workload"]

FLOAT_PRODUCT: Final = "product"
"""Kind of a matrix product in float, which the vector unit of an integer machine computes."""


@dataclass(frozen=True)
class MatmulOp:
    """`copies` products of `[m, k]` by `[n, k]` transposed.

    Attributes:
        name: The FX node.
        m, n, k: Sizes of one product; `m` counts the rows of the whole batch for a linear.
        copies: Independent products (batch times heads) for attention; 1 for a linear.
        weight: The integer weights `[n, k]`; None when both operands are activations.
        mask: Non-zeros of the weights, where the values themselves are not at hand.
        activation: Non-zeros of the activations `[m, k]`, where they are known.
        module: What its weight belongs to, such as `encoder.layer.0.attention.self.query`.
        inputs: Names of the operations whose results are read; "" is a float input of the Program
            (integers, such as ids and masks, are prepared with it and too few to count).
    """

    name: str
    m: int
    n: int
    k: int
    inputs: tuple[str, ...]
    copies: int = 1
    weight: Int8Array | None = field(default=None, repr=False, compare=False)
    mask: BoolArray | None = field(default=None, repr=False, compare=False)
    activation: BoolArray | None = field(default=None, repr=False, compare=False)
    stationary: bool = True
    module: str = ""

    kind = "matmul"

    def __post_init__(self) -> None:
        if min(self.m, self.n, self.k, self.copies) < 1:
            sizes = f"{self.copies} x [{self.m}, {self.k}] by [{self.n}, {self.k}]"
            raise ValueError(f"{self.name}: a product of {sizes} is empty")
        if self.mask is not None and self.mask.shape != (self.n, self.k):
            raise ValueError(
                f"{self.name}: the mask is {list(self.mask.shape)}, "
                f"the product needs {[self.n, self.k]}"
            )
        if self.weight is not None and self.weight.shape != (self.n, self.k):
            raise ValueError(
                f"{self.name}: the weights are {list(self.weight.shape)}, "
                f"the product needs {[self.n, self.k]}"
            )
        if (
            self.weight is not None
            and self.mask is not None
            and bool(np.any((self.weight != 0) & ~self.mask))
        ):
            raise ValueError(f"{self.name}: the mask drops weights that are not zero")

    @cached_property
    def nonzero(self) -> BoolArray | None:
        """Non-zeros of the weights, `[n, k]`; None for a product of activations, or dense."""
        if self.weight is not None:
            mask: BoolArray = self.weight != 0
            return mask
        return self.mask

    @cached_property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        if self.nonzero is None:
            return 1.0
        return int(np.count_nonzero(self.nonzero)) / self.nonzero.size

    @property
    def has_weights(self) -> bool:
        """Whether one operand is stored in memory, not computed."""
        return self.stationary and self.copies == 1

    @property
    def gemm(self) -> Gemm:
        """One of the products, with its masks."""
        return Gemm(self.m, self.n, self.k, self.nonzero, self.activation)

    @property
    def dense_macs(self) -> int:
        """Multiplications without any skipping."""
        return self.copies * self.m * self.n * self.k

    @property
    def out_elements(self) -> int:
        """Elements of the result."""
        return self.copies * self.m * self.n

    @property
    def in_elements(self) -> int:
        """Elements read that are activations."""
        both = 0 if self.has_weights else self.n * self.k
        return self.copies * (self.m * self.k + both)


@dataclass(frozen=True)
class VectorOp:
    """An operation on `elements` values, element by element or (`rowwise`) row by row.

    Attributes:
        elements: Values of the result.
        repeats: How often an element's cost is paid: the inner size of a product in float.
        reads: Values read; None for as many as the result has from every input.
        fetched: Those of them that come from tables in external memory.
    """

    name: str
    kind: str
    elements: int
    inputs: tuple[str, ...]
    copies: int = 1
    rowwise: bool = False
    repeats: int = 1
    reads: int | None = None
    fetched: int = 0

    @property
    def out_elements(self) -> int:
        """Elements of the result."""
        return self.elements

    @property
    def in_elements(self) -> int:
        """Elements read."""
        return self.elements * max(len(self.inputs), 1) if self.reads is None else self.reads


@dataclass(frozen=True)
class HostOp:
    """An operation that the machine cannot do; its operands travel to the host and back."""

    name: str
    kind: str
    elements: int
    inputs: tuple[str, ...]
    reason: str
    copies: int = 1

    @property
    def out_elements(self) -> int:
        """Elements of the result."""
        return self.elements

    @property
    def in_elements(self) -> int:
        """Elements read."""
        return self.elements * max(len(self.inputs), 1)


Op: TypeAlias = MatmulOp | VectorOp | HostOp


@dataclass(frozen=True)
class Workload:
    """Operations in an order in which every input comes before its use.

    Attributes:
        name: What is run, for titles.
        ops: The operations.
        batch: Independent sequences; chunks of them are pipelined.
        tokens: Rows of one sequence.
        results: Names of the operations whose results are the outcome; by default those that no
            other one reads.
        fingerprint: Hash of the Program this came from, so that timing and function can be shown to
            be of the same thing.
    """

    name: str
    ops: tuple[Op, ...]
    batch: int
    tokens: int
    results: tuple[str, ...] = ()
    fingerprint: str = ""

    @cached_property
    def last_reader(self) -> dict[str, int]:
        """Index of the last operation that reads each result, that of none for the outcome."""
        found = {name: index for index, op in enumerate(self.ops) for name in op.inputs}
        outcome = self.results or [op.name for op in self.ops if op.name not in found]
        return found | dict.fromkeys(outcome, len(self.ops))

    @cached_property
    def titles(self) -> dict[str, str]:
        """What people call each operation: the module of its weight, else its node."""
        modules = Counter(op.module for op in self.matmuls)
        shared = {op.name: op.module for op in self.matmuls if op.module}
        return {op.name: f"%{op.name}" for op in self.ops} | {
            name: module if modules[module] == 1 else f"{module} (%{name})"
            for name, module in shared.items()
        }

    @property
    def matmuls(self) -> tuple[MatmulOp, ...]:
        """The matrix products."""
        return tuple(op for op in self.ops if isinstance(op, MatmulOp))

    @property
    def dense_macs(self) -> int:
        """Multiplications of all products without any skipping."""
        return sum(op.dense_macs for op in self.matmuls)
