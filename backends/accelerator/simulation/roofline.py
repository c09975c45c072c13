"""Roofline, the fastest fidelity: peaks and bytes, no tiles and no waiting."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.accelerator.hardware.architecture import Architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.workload.operations import MatmulOp, VectorOp, Workload

__all__ = ["Roofline", "RooflinePoint", "roofline"]


@dataclass(frozen=True)
class RooflinePoint:
    """One operation: cycles that compute alone, or its weights' transfer alone, would take."""

    name: str
    macs: int
    bytes: float
    compute: float
    transfer: float


@dataclass(frozen=True)
class Roofline:
    """Lower bounds for a workload; all times are cycles.

    Attributes:
        compute: Executed multiplications at the peak, times the architecture's utilisation.
        transfer: Compulsory bytes at the streaming rate; none for weights that stay on chip.
        vector: Vector work at the unit's throughput.
    """

    points: tuple[RooflinePoint, ...]
    compute: float
    transfer: float
    vector: float

    @property
    def cycles(self) -> float:
        """The largest of the three: no schedule can be faster."""
        return max(self.compute, self.transfer, self.vector)


def roofline(workload: Workload, architecture: Architecture) -> Roofline:
    """Bound a workload from counts of non-zeros alone."""
    machine = Machine(architecture)
    peak = machine.engine.peak * machine.cores
    points = []
    for op in workload.matmuls:
        macs = op.gemm.macs(machine.engine.skips) * op.copies
        size = _least_bytes(op, machine)
        compute = macs / peak * machine.compute_cycles(1, macs == op.dense_macs)
        points.append(RooflinePoint(op.name, macs, size, compute, size / machine.dram_rate))
    stored = sum(point.bytes for point in points)
    level = architecture.outermost("weights")
    stays = stored <= architecture.capacity(level)
    vector = sum(machine.vector_cycles(op) for op in workload.ops if isinstance(op, VectorOp))
    return Roofline(
        tuple(points),
        sum(point.compute for point in points),
        0.0 if stays else sum(point.transfer for point in points),
        vector,
    )


def _least_bytes(op: MatmulOp, machine: Machine) -> float:
    """Bytes of the non-zero weights alone: no format can store fewer."""
    if not op.has_weights:
        return 0.0
    count = op.n * op.k if op.nonzero is None else int(op.nonzero.sum())
    return count * machine.value_bytes
