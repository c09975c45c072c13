"""How far the result hangs on numbers that nobody has published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsefx.backends.accelerator.architecture import Architecture, perturbed, quantities
from sparsefx.backends.accelerator.energy import energy_of
from sparsefx.backends.accelerator.machine import Machine
from sparsefx.backends.accelerator.quantity import Quantity
from sparsefx.backends.accelerator.simulation import Simulation, simulate
from sparsefx.backends.accelerator.workload import Workload
from sparsefx.errors import TargetError

__all__ = ["Swing", "sensitivity"]

_UNSURE = ("assumed", "suspect", "fitted")


@dataclass(frozen=True)
class Swing:
    """Change of the result, relative, when one number is 20 % less and 20 % more.

    NaN where the machine is no longer possible. `measure` says of what: the time, or for an entry
    of the energy table the energy.
    """

    path: str
    quantity: Quantity
    less: float
    more: float
    measure: Literal["time", "energy"] = "time"

    @property
    def size(self) -> float:
        """The larger of the two changes."""
        return max(abs(self.less), abs(self.more))


def sensitivity(
    workload: Workload, architecture: Architecture, by: float = 0.2
) -> tuple[Swing, ...]:
    """Move every assumed, suspect or fitted number that counts, largest effect first.

    A number that stays what it is, 0 or a count of 1 or 2, is left out.
    """
    base = simulate(workload, architecture)
    found = []
    for path, quantity in quantities(architecture):
        if quantity.status not in _UNSURE or path.startswith("value_bits"):
            continue
        if quantity == quantity.scaled(1 - by) == quantity.scaled(1 + by):
            continue
        if path.startswith("energy."):
            found.append(_energy_swing(base, path, quantity, by))
            continue
        less, more = (_change(base, path, factor) for factor in (1 - by, 1 + by))
        found.append(Swing(path, quantity, less, more))
    return tuple(sorted(found, key=lambda swing: -swing.size if swing.size == swing.size else 0))


def _energy_swing(base: Simulation, path: str, quantity: Quantity, by: float) -> Swing:
    """Energy is linear in each entry of the table, and no entry changes what runs when."""
    arch = perturbed(base.architecture, path, 1 + by)
    machine, plans = Machine(arch), base.schedule.plans
    moved = arch.energy.leakage.value * base.seconds * 1e12
    for index, (op, result) in enumerate(zip(base.workload.ops, base.ops, strict=True)):
        found = energy_of(op, machine, result.traffic, plans.get(index), result.macs)
        moved += sum(found.values())
    more = moved / sum(base.energy.values()) - 1
    return Swing(path, quantity, -more, more, "energy")


def _change(base: Simulation, path: str, factor: float) -> float:
    moved = perturbed(base.architecture, path, factor)
    try:
        return simulate(base.workload, moved, like=base).seconds / base.seconds - 1
    except TargetError:
        return float("nan")
