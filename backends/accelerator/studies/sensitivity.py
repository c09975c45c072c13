"""How far the result hangs on numbers that nobody has published."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import Final, Literal

from sparsefx.backends.accelerator.hardware.architecture import perturbed, quantities
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.hardware.quantity import Quantity
from sparsefx.backends.accelerator.simulation.energy import energy_of
from sparsefx.backends.accelerator.simulation.tile_level import Simulation, simulate
from sparsefx.backends.accelerator.workload.operations import HostOp, VectorOp
from sparsefx.errors import TargetError

__all__ = ["LESS", "MORE", "VISIBLE", "Swing", "in_percent", "sensitivity"]

_UNSURE = ("assumed", "suspect", "fitted")
_STEP = 0.2
LESS, MORE = (f"{100 * _STEP:g} % {way}" for way in ("less", "more"))
"""How far each number is moved, in words."""

VISIBLE: Final = 0.0005
"""A smaller change reads as 0.0 %."""


@dataclass(frozen=True)
class Swing:
    """Change of the result, relative, when one number is :data:`LESS`, and when it is :data:`MORE`.

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
        """The larger of the two changes; NaN where both are."""
        known = [abs(change) for change in (self.less, self.more) if not isnan(change)]
        return max(known, default=nan)


def in_percent(change: float) -> str:
    """A change in percent, or that no such machine can be.

    >>> in_percent(-0.124), in_percent(float("nan"))
    ('-12.4%', 'impossible')
    """
    return "impossible" if isnan(change) else f"{change:+.1%}"


def sensitivity(base: Simulation) -> tuple[Swing, ...]:
    """Move every assumed, suspect or fitted number of a run that counts, largest effect first.

    A number that stays what it is, 0 or a count of 1 or 2, is left out. This simulates twice for
    each number that the time can hang on: seconds for a model of 12 layers.
    """
    found, (low, high) = [], (1 - _STEP, 1 + _STEP)
    for path, quantity in quantities(base.architecture):
        if quantity.status not in _UNSURE or path.startswith("value_bits"):
            continue
        if quantity == quantity.scaled(low) == quantity.scaled(high):
            continue
        if path.startswith("energy."):
            found.append(_energy_swing(base, path, quantity))
            continue
        if _unread(base, path):
            found.append(Swing(path, quantity, 0.0, 0.0))
            continue
        less, more = _change(base, path, low), _change(base, path, high)
        found.append(Swing(path, quantity, less, more))
    return tuple(sorted(found, key=lambda swing: -swing.size if swing.size == swing.size else 0))


def _energy_swing(base: Simulation, path: str, quantity: Quantity) -> Swing:
    """Energy is linear in each entry of the table, and no entry changes what runs when."""
    arch = perturbed(base.architecture, path, 1 + _STEP)
    machine, plans = Machine(arch), base.schedule.plans
    moved = arch.energy.leakage.value * base.seconds * 1e12
    for index, (op, result) in enumerate(zip(base.workload.ops, base.ops, strict=True)):
        found = energy_of(op, machine, result.traffic, plans.get(index), result.macs)
        moved += sum(found.values())
    more = moved / sum(base.energy.values()) - 1
    return Swing(path, quantity, -more, more, "energy")


def _unread(base: Simulation, path: str) -> bool:
    """Whether no operation of the run asks for a number: those of the host and of functions."""
    part, _, name = path.rpartition(".")
    if part == "host":
        return not any(isinstance(op, HostOp) for op in base.workload.ops)
    if part != "vector.costs":
        return False
    vector = [op for op in base.workload.ops if isinstance(op, VectorOp)]
    return not any(base.machine.cost_of(op.kind) == name for op in vector)


def _change(base: Simulation, path: str, factor: float) -> float:
    moved = perturbed(base.architecture, path, factor)
    try:
        return simulate(base.workload, moved, like=base).seconds / base.seconds - 1
    except TargetError:
        return nan
