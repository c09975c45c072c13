"""The description of an accelerator: frozen, validated, every number with its status."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from sparsefx.backends.accelerator.hardware.quantity import (
    Bytes,
    Count,
    Fraction,
    Hertz,
    OperationsPerSecond,
    PerSecond,
    Picojoule,
    PicojoulePerByte,
    Quantity,
    Seconds,
    Status,
    Watt,
    Whole,
)

__all__ = [
    "Architecture",
    "Dram",
    "EnergyTable",
    "EngineSpec",
    "FormatSpec",
    "Host",
    "Network",
    "Operand",
    "Sram",
    "SramEnergy",
    "VectorUnit",
    "perturbed",
    "quantities",
]

_CONFIG = ConfigDict(extra="forbid")

Operand = Literal["weights", "activations"]
Scope = Literal["core", "cluster", "chip"]


@dataclass(frozen=True, config=_CONFIG)
class EngineSpec:
    """The sparsity engine of one core: its kind and its parameters by field name."""

    kind: str
    numbers: dict[str, Whole | list[Whole]]
    options: dict[str, str | bool] | None = None


@dataclass(frozen=True, config=_CONFIG)
class FormatSpec:
    """How weights are stored: the format's name and its parameters."""

    kind: str
    numbers: dict[str, Whole] | None = None


@dataclass(frozen=True, config=_CONFIG)
class Sram:
    """One level of on-chip memory, innermost first in the architecture's list."""

    name: str
    scope: Scope
    capacity: Bytes
    holds: list[Operand]
    bandwidth: PerSecond | None = None
    double_buffered: bool = True


@dataclass(frozen=True, config=_CONFIG)
class Network:
    """The network on chip between outer memory and cores."""

    bandwidth: PerSecond


@dataclass(frozen=True, config=_CONFIG)
class Dram:
    """External memory; `efficiency` is the share of the peak that streaming reaches."""

    bandwidth: PerSecond
    efficiency: Fraction
    latency: Seconds
    burst: Bytes
    holds_activations: bool = False


@dataclass(frozen=True, config=_CONFIG)
class VectorUnit:
    """What computes everything but matrix products; `costs` are operations an element.

    A function that a table gives (`silu`, `exp`, ...) and that has no cost there costs what `tanh`
    does; everything else without a cost what `elementwise` does.
    """

    throughput: OperationsPerSecond
    launch: Seconds
    costs: dict[str, Count]
    memory_bound: bool = False
    streams: bool = True


@dataclass(frozen=True, config=_CONFIG)
class Host:
    """The link to the host, which runs what the machine cannot."""

    bandwidth: PerSecond
    latency: Seconds
    throughput: OperationsPerSecond


@dataclass(frozen=True, config=_CONFIG)
class SramEnergy:
    """Energy of one byte read from or written to an SRAM of this capacity."""

    capacity: Bytes
    access: PicojoulePerByte


@dataclass(frozen=True, config=_CONFIG)
class EnergyTable:
    """Energies of single actions; memories between two given capacities are interpolated."""

    mac: Picojoule
    gated_mac: Picojoule
    operand_registers: Picojoule
    vector_operation: Picojoule
    sram: list[SramEnergy]
    dram: PicojoulePerByte
    leakage: Watt

    def sram_access(self, capacity: float) -> float:
        """Energy of one byte, pJ, at `capacity` bytes: linear in the square root of capacity."""
        points = sorted((p.capacity.value, p.access.value) for p in self.sram)
        if capacity <= points[0][0]:
            return points[0][1]
        for (small, low), (large, high) in pairwise(points):
            if capacity <= large:
                share: float = (capacity**0.5 - small**0.5) / (large**0.5 - small**0.5)
                return low + share * (high - low)
        return points[-1][1]


@dataclass(frozen=True, config=_CONFIG)
class Architecture:
    """One accelerator. See docs/writing-an-engine.md for the YAML form of it.

    Attributes:
        utilisation: Share of the array's issue slots that are left by what is not modelled.
        sparse_utilisation: The same when the engine skips weights; None: as `utilisation`.
        launch: Time before each operation in which nothing runs.
    """

    name: str
    description: str
    source: str
    clock: Hertz
    chips: Whole
    clusters: Whole
    cores: Whole
    engine: EngineSpec
    weights: FormatSpec
    value_bits: Whole
    sram: list[Sram]
    dram: Dram
    vector: VectorUnit
    energy: EnergyTable
    network: Network | None = None
    host: Host | None = None
    utilisation: Fraction | None = None
    sparse_utilisation: Fraction | None = None
    launch: Seconds | None = None

    @model_validator(mode="after")
    def _holds_both_operands(self) -> Architecture:
        for operand in ("weights", "activations"):
            if not any(operand in level.holds for level in self.sram):
                raise ValueError(f"no SRAM level holds {operand}")
        return self

    @property
    def all_cores(self) -> int:
        """Cores of all chips."""
        return round(self.chips.value * self.clusters.value * self.cores.value)

    def capacity(self, level: Sram) -> float:
        """Bytes of one level in the whole machine."""
        copies = {"core": self.all_cores, "cluster": self.all_cores / self.cores.value}
        return level.capacity.value * copies.get(level.scope, self.chips.value)

    def innermost(self, operand: Operand) -> Sram:
        """The level nearest to the array that holds an operand."""
        return next(level for level in self.sram if operand in level.holds)

    def outermost(self, operand: Operand) -> Sram:
        """The largest level that holds an operand."""
        return next(level for level in reversed(self.sram) if operand in level.holds)

    def statuses(self) -> dict[Status, int]:
        """How many of the numbers are published, derived, assumed, suspect and fitted."""
        counts: dict[Status, int] = {}
        for _, quantity in quantities(self):
            counts[quantity.status] = counts.get(quantity.status, 0) + 1
        return counts


def quantities(node: Any, path: str = "") -> list[tuple[str, Quantity]]:
    """All numbers of a description with their paths, in the order of its fields."""
    if isinstance(node, Quantity):
        return [(path, node)]
    if is_dataclass(node):
        items = [(f.name, getattr(node, f.name)) for f in fields(node)]
    elif isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list | tuple):
        items = [(str(i), item) for i, item in enumerate(node)]
    else:
        return []
    dot = "." if path else ""
    return [found for key, item in items for found in quantities(item, f"{path}{dot}{key}")]


def perturbed(node: Any, path: str, factor: float) -> Any:
    """The same description with the number at `path` `factor` times as large."""
    if isinstance(node, Quantity):
        return node.scaled(factor)
    head, _, rest = path.partition(".")
    if isinstance(node, dict):
        return {**node, head: perturbed(node[head], rest, factor)}
    if isinstance(node, list):
        return [perturbed(v, rest, factor) if str(i) == head else v for i, v in enumerate(node)]
    return replace(node, **{head: perturbed(getattr(node, head), rest, factor)})
