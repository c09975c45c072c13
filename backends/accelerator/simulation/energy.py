"""Energy of one operation, by level: what was computed, moved, gated, indexed and idled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sparsefx.backends.accelerator.engines.base import Gemm
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.simulation.work import Traffic
from sparsefx.backends.accelerator.tiling.plan import MatmulPlan
from sparsefx.backends.accelerator.workload.operations import MatmulOp, Op, VectorOp

__all__ = ["LEVELS", "MacCount", "energy_of"]

LEVELS: Final = ("mac", "gated", "registers", "sram", "dram", "metadata", "vector", "idle")


@dataclass(frozen=True)
class MacCount:
    """Multiplications of one operation.

    Attributes:
        dense: Without any skipping.
        executed: That the engine cannot skip.
        effectual: With both operands non-zero.
    """

    dense: int
    executed: int
    effectual: int


def energy_of(
    op: Op, machine: Machine, traffic: Traffic, plan: MatmulPlan | None, macs: MacCount | None
) -> dict[str, float]:
    """Energy in pJ for each of `LEVELS`; their sum is the operation's energy.

    Leakage is not an operation's: it is added once, for the whole run, under `idle`.
    """
    table = machine.architecture.energy
    found = dict.fromkeys(LEVELS, 0.0)
    found["dram"] = (traffic.total - traffic.metadata) * table.dram.value
    found["metadata"] = traffic.metadata * table.dram.value
    if isinstance(op, VectorOp):
        found["vector"] = machine.vector_operations(op) * table.vector_operation.value
        moved = (op.in_elements + op.out_elements) * machine.value_bytes
        found["sram"] = moved * _access(machine, "activations")
    if isinstance(op, MatmulOp) and plan is not None and macs is not None:
        found["mac"] = macs.effectual * table.mac.value
        found["gated"] = (macs.executed - macs.effectual) * table.gated_mac.value
        found["registers"] = macs.executed * table.operand_registers.value
        _memory(op, machine, plan, found)
    return found


def _access(machine: Machine, operand: str) -> float:
    arch = machine.architecture
    level = arch.innermost("weights" if operand == "weights" else "activations")
    return arch.energy.sram_access(level.capacity.value)


def _memory(op: MatmulOp, machine: Machine, plan: MatmulPlan, found: dict[str, float]) -> None:
    """Add what the product reads from and writes to the memories on chip."""
    arch = machine.architecture
    values, metadata = plan.stored_bytes
    mapping = plan.mapping
    gemm = Gemm(op.m, op.n, op.k)
    active, stored = machine.engine.reads(gemm, values + metadata, machine.value_bytes)
    if not op.has_weights:
        stored = op.n * op.k * machine.value_bytes
    share = metadata / (values + metadata) if values + metadata else 0.0
    out = op.m * op.n * machine.value_bytes
    near_w, near_a = _access(machine, "weights"), _access(machine, "activations")
    filled = values + metadata if op.has_weights else op.n * op.k * machine.value_bytes
    found["sram"] += op.copies * (active + op.m * op.k * machine.value_bytes + out) * near_a
    found["sram"] += op.copies * (stored + filled) * near_w * (1 - share)
    found["metadata"] += (stored + filled) * near_w * share
    outer = arch.outermost("activations")
    if outer is not arch.innermost("activations"):
        again = -(-op.n // mapping.tile_n)
        moved = op.copies * (op.m * op.k * again * machine.value_bytes + out)
        found["sram"] += (moved + values) * arch.energy.sram_access(outer.capacity.value)
        found["metadata"] += metadata * arch.energy.sram_access(outer.capacity.value)
