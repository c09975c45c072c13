"""Where operands lie: what stays on chip, and how every product is cut for that."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.tiling.plan import MatmulPlan, plan_matmul
from sparsefx.backends.accelerator.workload.operations import MatmulOp, Workload

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """The products of a workload cut for a machine; sizes are bytes of the whole machine.

    Attributes:
        plans: By the operation's index.
        resident: Whether all weights stay on chip; else they are streamed in.
        weight_room: Room for weights in the outermost memory that holds them.
        activation_room: The outermost memory for activations.
    """

    plans: dict[int, MatmulPlan]
    resident: bool
    weight_room: float
    activation_room: float


def place(workload: Workload, machine: Machine) -> Placement:
    """Keep all weights on chip if their groups fit there, as they are cut for it; else stream.

    Raises:
        TargetError: When no tile of a product fits the machine.
    """
    arch = machine.architecture
    level_w, level_a = arch.outermost("weights"), arch.outermost("activations")
    room_a = arch.capacity(level_a)
    peak = max((op.out_elements for op in workload.ops), default=0)
    used = min(2 * peak * machine.value_bytes, room_a / 2)
    room_w = arch.capacity(level_w) - (used if level_a is level_w else 0)
    layers = [op for op in workload.matmuls if op.has_weights]
    least = sum(op.density * op.n * op.k for op in layers) * machine.value_bytes
    if not arch.dram.holds_activations and layers and least <= room_w:
        plans = _planned(workload, machine, streamed=False)
        if sum(sum(plan.stored_bytes) for plan in plans.values()) <= room_w:
            return Placement(plans, True, room_w, room_a)
    return Placement(_planned(workload, machine, streamed=True), False, room_w, room_a)


def _planned(workload: Workload, machine: Machine, *, streamed: bool) -> dict[int, MatmulPlan]:
    return {
        index: plan_matmul(op, machine, streamed=streamed)
        for index, op in enumerate(workload.ops)
        if isinstance(op, MatmulOp)
    }
