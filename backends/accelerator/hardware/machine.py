"""A machine to run on: an architecture with its engine and format built and rates in cycles."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Timing
from sparsefx.backends.accelerator.hardware.architecture import Architecture, Sram
from sparsefx.backends.accelerator.hardware.catalogue import build_engine, build_format
from sparsefx.backends.accelerator.workload.operations import MatmulOp, VectorOp
from sparsefx.backends.accelerator.workload.units import LOOKED_UP
from sparsefx.backends.formats.encoding import FormatSize, SparseFormat
from sparsefx.errors import SparsefxError, TargetError

__all__ = ["Machine", "Mapping"]


@dataclass(frozen=True)
class Mapping:
    """One way to cut a product.

    Attributes:
        tile_m, tile_n, tile_k: Sizes of a tile.
        bytes: What the tile needs in the core's memory: both operands, twice when double
            buffered, and the accumulators.
        cycles: The model's estimate for the whole product on all cores.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    bytes: float
    cycles: float

    def __str__(self) -> str:
        return (
            f"{self.tile_m} x {self.tile_n} x {self.tile_k}: "
            f"{self.bytes / 1024:.1f} KiB, about {self.cycles:,.0f} cycles"
        )


@dataclass(frozen=True)
class Machine:
    """What the mapper and the simulators ask of an architecture; all times are core cycles."""

    architecture: Architecture
    timings: dict[tuple[object, ...], Timing] = field(
        default_factory=dict, repr=False, compare=False
    )

    def timed(self, place: tuple[object, ...], part: Callable[[], Gemm]) -> Timing:
        """Time a part of a product once; `place` names the part.

        Machines that only differ in other numbers than the engine's may share `timings`.
        """
        key = (self.engine, *place)
        if key not in self.timings:
            self.timings[key] = self._run(part(), str(place[0]))
        return self.timings[key]

    def _run(self, gemm: Gemm, product: str) -> Timing:
        """Run the engine, which may be a stranger's: an error or a false time names it."""
        who = f"engine {type(self.engine).__name__}, product %{product}"
        try:
            timing = self.engine.run(gemm)
        except SparsefxError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename}:{frame.lineno}"
            raise TargetError(f"{type(error).__name__}: {error}", who=who, where=place) from error
        if not isinstance(timing, Timing):
            raise TargetError(
                f"run() returned {timing!r}", who=who, hint="return Timing(cycles, macs)"
            )
        needed = gemm.macs(self.engine.skips)
        if not needed <= timing.macs <= gemm.dense_macs:
            skipped = " and ".join(sorted(self.engine.skips)) or "nothing"
            raise TargetError(
                f"it counts {timing.macs:,} multiplications; without the zeros that it skips "
                f"({skipped}) the product has {needed:,}, with all {gemm.dense_macs:,}",
                who=who,
                hint="return Timing(cycles, gemm.macs(self.skips)), and say in skips what it skips",
            )
        if timing.cycles * self.engine.peak < timing.macs:
            raise TargetError(
                f"{timing.macs:,} multiplications in {timing.cycles:,} cycles are more than the "
                f"{self.engine.peak:,} a cycle that its array has",
                who=who,
                hint="cycles * peak >= macs must hold; see docs/writing-an-engine.md",
            )
        return timing

    @cached_property
    def engine(self) -> Engine:
        """The engine of one core.

        Raises:
            TargetError: It is none, or its array has no multipliers, or steps of nothing.
        """
        engine = build_engine(self.architecture.engine, self.architecture.name)
        for name in ("peak", "row_step", "column_step", "k_step"):
            if getattr(engine, name) < 1:
                raise TargetError(
                    f"its {name} is {getattr(engine, name)}: expected 1 or more",
                    who=f"engine {type(engine).__name__}",
                    where=self.architecture.name,
                    hint="see docs/writing-an-engine.md",
                )
        return engine

    @cached_property
    def form(self) -> SparseFormat:
        """The weight format."""
        return build_format(self.architecture.weights, self.architecture.name)

    @cached_property
    def mappings(self) -> dict[tuple[object, ...], Mapping]:
        """Tile sizes chosen so far, by the product's sizes and density."""
        return {}

    @cached_property
    def cores(self) -> int:
        """Cores of all chips."""
        return self.architecture.all_cores

    @cached_property
    def clock(self) -> float:
        """Cycles a second."""
        return self.architecture.clock.value

    @cached_property
    def value_bytes(self) -> float:
        """Bytes of one stored value."""
        return self.architecture.value_bits.value / 8

    @cached_property
    def dram_rate(self) -> float:
        """Bytes a cycle from external memory, or from the network in front of it if narrower."""
        dram = self.architecture.dram
        rate = dram.bandwidth.value * dram.efficiency.value
        if self.architecture.network is not None:
            rate = min(rate, self.architecture.network.bandwidth.value)
        return rate / self.clock

    def dram_cycles(self, size: float) -> float:
        """Cycles to move `size` bytes: whole bursts at the streaming rate."""
        if size <= 0:
            return 0.0
        burst = self.architecture.dram.burst.value
        return -(-size // burst) * burst / self.dram_rate

    @cached_property
    def dram_latency(self) -> float:
        """Cycles from a request to its first byte."""
        return self.architecture.dram.latency.value * self.clock

    @cached_property
    def feed_rate(self) -> float:
        """Bytes a cycle that one core gets from its nearest memory; infinite when not given."""
        level = self.architecture.innermost("activations")
        if level.bandwidth is None:
            return float("inf")
        share = 1 if level.scope == "core" else self.sharing(level)
        return level.bandwidth.value / share / self.clock

    def feed_cycles(self, m: int, k: int, weight_bytes: float) -> float:
        """Cycles in which a core's nearest memory delivers a tile: `[m, k]` activations, weights.

        Both operands of every tile are counted anew.
        """
        return (m * k * self.value_bytes + weight_bytes) / self.feed_rate

    def sharing(self, level: Sram) -> int:
        """Cores that share one instance of a level."""
        arch = self.architecture
        per_cluster = round(arch.cores.value)
        counts = {
            "core": 1,
            "cluster": per_cluster,
            "chip": per_cluster * round(arch.clusters.value),
        }
        return counts[level.scope]

    def per_core(self, level: Sram) -> float:
        """Bytes of a level that one core may use."""
        return level.capacity.value / self.sharing(level)

    @cached_property
    def launch(self) -> float:
        """Cycles before each operation."""
        launch = self.architecture.launch
        return launch.value * self.clock if launch else 0.0

    def compute_cycles(self, cycles: int, dense: bool) -> float:
        """Engine cycles as they come out with the share that what is not modelled leaves."""
        arch = self.architecture
        share = arch.utilisation
        if not dense and arch.sparse_utilisation is not None:
            share = arch.sparse_utilisation
        return cycles / share.value if share else float(cycles)

    def vector_operations(self, op: VectorOp) -> float:
        """Operations of the vector unit that an operation of the workload takes."""
        cost = self.architecture.vector.costs[self.cost_of(op.kind)]
        return op.elements * op.repeats * cost.value

    def cost_of(self, kind: str) -> str:
        """Which of the vector unit's costs an operation has: its own, or that of its like."""
        costs = self.architecture.vector.costs
        like = "tanh" if kind in LOOKED_UP else "elementwise"
        return next((name for name in (kind, like) if name in costs), "elementwise")

    def vector_cycles(self, op: VectorOp, share: float = 1.0) -> float:
        """Cycles of a share of a vector operation, launch apart."""
        unit = self.architecture.vector
        cycles = self.vector_operations(op) * share / unit.throughput.value * self.clock
        if unit.memory_bound:
            moved = (op.in_elements + op.out_elements) * share * self.value_bytes
            cycles = max(cycles, moved / self.dram_rate)
        return cycles

    @cached_property
    def vector_launch(self) -> float:
        """Cycles before each vector operation."""
        return self.architecture.vector.launch.value * self.clock

    def stored(self, op: MatmulOp) -> FormatSize:
        """Exact size of a layer's weights; whole, zeros as values, where that is no larger."""
        if op.name not in self._stored:
            self._stored[op.name] = self._measure(op)
        return self._stored[op.name]

    @cached_property
    def _stored(self) -> dict[str, FormatSize]:
        return {}

    def _measure(self, op: MatmulOp) -> FormatSize:
        whole = FormatSize(self.form.value_width * op.n * op.k)
        if op.nonzero is None or not self.form.fits(op.nonzero):
            return whole
        compressed = self.form.measure(op.nonzero)
        return compressed if compressed.bits < whole.bits else whole

    def bytes_of(self, size: FormatSize) -> tuple[float, float]:
        """Bytes of stored weights: `(values, metadata)`; zeros that a format forces in are none."""
        scale = self.value_bytes / self.form.value_width
        metadata = size.padding_bits * scale + (size.index_bits + size.pointer_bits) / 8
        return size.value_bits * scale, metadata

    def bytes_a_weight(self, op: MatmulOp) -> float:
        """Stored bytes over all weights of a product, zeros counted."""
        return sum(self.bytes_of(self.stored(op))) / (op.n * op.k)
