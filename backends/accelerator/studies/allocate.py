"""allocate-sparsity: each layer gets the sparsity that a budget of a machine asks for."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, fx

from sparsefx.backends.accelerator.engines.base import BoolArray, Gemm
from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.workload.units import op_name
from sparsefx.errors import PassError, did_you_mean
from sparsefx.masks import MaskSite
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.prune.balance_banks import balanced_mask
from sparsefx.passes.prune.loss_curves import LossCurve, read_loss_curves
from sparsefx.passes.prune.masking import add_mask, masks_of, zero_masked
from sparsefx.passes.prune.patterns import Unstructured, mask_for
from sparsefx.passes.selection import check_selection, select_weights
from sparsefx.properties import FIXES_ZEROS, Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["AllocateSparsity"]

LEVELS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)
"""Sparsities that a layer can be given."""
_Offer = tuple[float, str, int, int]
"""A step of a layer: its price, the layer, and the places of both sparsities."""


@dataclass(frozen=True)
class _Choice:
    """One sparsity of one layer: what it costs on the machine and what it takes from the layer."""

    sparsity: float
    cost: float
    harm: float


@dataclass(frozen=True)
class AllocateSparsity(Pass):
    """Prunes each layer as far as a cycle, byte or energy budget of an architecture asks for.

    For each layer and each of several sparsities, the cost is what the architecture's engine takes
    for that layer with the weights that would be left, their real places included. The harm is the
    measured loss increase of the file `sensitivity`, or without one the share of the weights'
    squared magnitude that goes. Starting dense, the step with the least harm for the cost that it
    saves is taken, again and again, until the budget holds.

    Establishes ``masked``; the zeros stay zero in ``program.step()``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(128, 64, bias=False)
    >>> program = small_program(layer, input=torch.ones(1, 128))
    >>> spec = "allocate-sparsity{arch='lock-step-32',budget=0.5,roles=other}"
    >>> pruned = Pipeline.parse(spec).run(program)
    >>> 0.4 < float((pruned.tensor("weight") == 0).float().mean()) < 0.8
    True

    Skips what magnitude-prune skips, and matrices that no linear reads.

    Attributes:
        arch: A preset's name or the path of an architecture file.
        budget: Share of the dense cost that may be left, over all layers, 0 < budget <= 1.
        measure: What is budgeted: engine ``cycles``, stored weight ``bytes``, or ``energy`` of
            multiplications and weight traffic.
        pattern: ``unstructured`` magnitudes, or ``balanced`` banks (see balance-banks).
        bank: Width of a bank, for ``balanced``.
        rows: Activation rows (batch times tokens) for which layers are costed.
        sensitivity: File of loss increases by weight and sparsity, YAML or JSON (see
            :mod:`sparsefx.passes.prune.loss_curves`); "" for magnitudes.
        roles: Roles of the weights to prune: encoder, pooler, head, embedding, other.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
    """

    name: ClassVar[str] = "allocate-sparsity"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.MASKED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = FIXES_ZEROS

    arch: str = "anton"
    budget: float = 0.2
    measure: Literal["cycles", "bytes", "energy"] = "cycles"
    pattern: Literal["unstructured", "balanced"] = "balanced"
    bank: int = 64
    rows: int = 128
    sensitivity: str = ""
    roles: tuple[str, ...] = ("encoder",)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.budget <= 1:
            raise self.refuse("budget", "expected a share of the dense cost, 0 < budget <= 1")
        for option, least in (("bank", 2), ("rows", 1)):
            if getattr(self, option) < least:
                raise self.refuse(option, f"expected at least {least}")
        check_selection(self)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Choose the sparsities, then add the masks."""
        selection = select_weights(program, self.roles, self.include, self.exclude)
        skipped = [*selection.left_alone]
        names = []
        for name in selection.chosen:
            if _read_by_linear(program, name):
                names.append(name)
            else:
                skipped.append(Skip(name, "no linear reads it"))
        if not names:
            return PassReport(0, tuple(skipped))
        machine = Machine(load_architecture(self.arch))
        curves = self._curves(names)
        layers = {name: self._choices(program, name, machine, curves.get(name)) for name in names}
        chosen, left = self._allocate(layers)
        sites = [self._prune(program, ctx, name, sparsity) for name, sparsity in chosen.items()]
        zero_masked(program, sites)
        program.active = (*program.active, self)
        levels = ", ".join(f"{name} {sparsity:.0%}" for name, sparsity in chosen.items())
        notes = (f"{left:.1%} of the dense {self.measure} on {self.arch} are left", levels)
        return PassReport(len(sites), tuple(skipped), notes)

    def after_step(self, program: Program, step: int) -> None:
        """Zero the masked weights again after an optimizer step."""
        zero_masked(program, self.own_masks(program))

    def own_masks(self, program: Program) -> tuple[MaskSite, ...]:
        """The masks that this pass put in."""
        return masks_of(program, self)

    def _mask(self, weight: Tensor, sparsity: float) -> Tensor:
        scores = weight.detach().abs()
        if self.pattern == "balanced":
            return balanced_mask(scores, self.bank, sparsity)
        return mask_for(scores, sparsity, Unstructured())

    def _curves(self, names: list[str]) -> dict[str, LossCurve]:
        """The measured curves of all weights that are to be pruned."""
        if not self.sensitivity:
            return {}
        curves = read_loss_curves(self.sensitivity)
        if missing := [name for name in names if name not in curves]:
            listed = "".join(f"\n  - {name}" for name in missing)
            raise PassError(
                f"{len(missing)} weights have no curve in {self.sensitivity!r}:{listed}",
                who=self.name,
                where="sensitivity",
                hint=f"{did_you_mean(missing[0], curves)}; or exclude them",
            )
        return curves

    def _choices(
        self, program: Program, name: str, machine: Machine, curve: LossCurve | None
    ) -> list[_Choice]:
        """Cost and harm of every sparsity of a layer that leaves a weight; costs have to fall."""
        weight = program.tensor(name).detach()
        if not bool(torch.isfinite(weight).all()):
            raise PassError("it holds NaN or infinite values", who=self.name, where=name)
        total = float(weight.square().sum()) or 1.0
        found: list[_Choice] = []
        for sparsity in LEVELS:
            mask = self._mask(weight, sparsity)
            if not bool(mask.any()):
                break
            harm = float(weight.masked_fill(mask, 0).square().sum()) / total
            if curve is not None:
                harm = curve.at(sparsity)
            cost = self._cost(machine, mask.cpu().numpy())
            if not found or cost < found[-1].cost:
                found.append(_Choice(sparsity, cost, harm))
        return found

    def _cost(self, machine: Machine, mask: BoolArray) -> float:
        rows, columns = mask.shape
        gemm = Gemm(self.rows, rows, columns, mask)
        if self.measure == "cycles":
            return float(machine.engine.run(gemm).cycles)
        size = machine.form.measure(mask).bytes if machine.form.compresses(mask) else mask.size
        if self.measure == "bytes":
            return float(size)
        table = machine.architecture.energy
        products = machine.engine.run(gemm).macs
        work: float = products * (table.mac.value + table.operand_registers.value)
        moved: float = size * table.dram.value
        return work + moved

    def _allocate(self, layers: dict[str, list[_Choice]]) -> tuple[dict[str, float], float]:
        """Take the cheapest steps until the budget holds; returns sparsities and the share left."""
        dense = sum(choices[0].cost for choices in layers.values())
        at = dict.fromkeys(layers, 0)
        cost = dense
        steps: list[_Offer] = []
        for name, choices in layers.items():
            _push(steps, name, choices, 0)
        while cost > self.budget * dense:
            if not steps:
                raise PassError(
                    f"budget={self.budget}: {cost / dense:.1%} of the dense {self.measure} are "
                    f"left with every layer at its sparsest",
                    who=self.name,
                    where="budget",
                    hint="raise the budget, or choose an architecture that skips more",
                )
            _, name, origin, to = heapq.heappop(steps)
            if origin != at[name]:  # its price is that of a step from where the layer was
                continue
            cost -= layers[name][at[name]].cost - layers[name][to].cost
            at[name] = to
            _push(steps, name, layers[name], to)
        return {name: layers[name][at[name]].sparsity for name in layers}, cost / dense

    def _prune(self, program: Program, ctx: PassContext, name: str, sparsity: float) -> MaskSite:
        mask = self._mask(program.tensor(name), sparsity)
        return add_mask(ctx.rewriter, name, mask, owner=str(self))


def _push(steps: list[_Offer], name: str, choices: list[_Choice], at: int) -> None:
    """Offer every later sparsity of a layer by its harm for the cost that it saves."""
    here = choices[at]
    for to in range(at + 1, len(choices)):
        saved = here.cost - choices[to].cost
        heapq.heappush(steps, ((choices[to].harm - here.harm) / saved, name, at, to))


def _read_by_linear(program: Program, name: str) -> bool:
    node: fx.Node
    for node in program.graph.find_nodes(op="get_attr", target=name):
        return any(op_name(user) == "aten.linear" and user.args[1] is node for user in node.users)
    return False
