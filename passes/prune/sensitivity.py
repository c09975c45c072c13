"""One-shot sensitivity: what it costs to prune, or to quantize, one linear and no other."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from sparsefx.errors import PassError
from sparsefx.graph.fake_quantization import fake_quantize, fake_quantize_weight
from sparsefx.passes.analyses.dataflow import weight_of
from sparsefx.passes.prune.changed_runs import Change, ChangedRuns
from sparsefx.passes.prune.loss_curves import LossCurve
from sparsefx.passes.prune.patterns import GroupWise, Pattern, mask_for, parse_pattern, unfit
from sparsefx.passes.selection import Selection, select_weights

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["LEVELS", "UNTOUCHED", "Sensitivity", "measure_sensitivity"]

aten = torch.ops.aten

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Sparsities that are measured unless others are asked for."""
UNTOUCHED = "untouched"
"""Name of the loss of the Program as it is."""
_WHO = "sensitivity"
Batch = Mapping[str, Tensor]
Loss = Callable[[Mapping[str, Tensor], int], Tensor]
Tell = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        base: The loss of the untouched Program.
        curves: Loss increase by sparsity, for each weight in graph order.
        int8: Loss increase with the weight int8 (symmetric, a scale for each output channel) and
            its input uint8 (affine, the range of each batch), for each weight.
    """

    base: float
    curves: dict[str, LossCurve]
    int8: dict[str, float]


def measure_sensitivity(
    program: Program,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    levels: Sequence[float] = LEVELS,
    pattern: str = "unstructured",
    roles: Sequence[str] = ("encoder",),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    losses: dict[str, float] | None = None,
    tell: Tell | None = None,
) -> Sensitivity:
    """Prune, then quantize, each linear alone, and see what the loss does.

    Weights of small magnitude go, nothing is trained, and the Program stays as it is. Of each batch
    only what comes after the changed linear is computed anew, and what enters it is held: memory
    grows with the number of batches.

    Args:
        program: In the mode in which it is to be measured, mostly ``eval()``.
        batches: Inputs by name; all are held to the same weight in the mean.
        loss: From the outputs, and the number of the batch, to a scalar.
        levels: Sparsities, 0 < level < 1.
        pattern: ``unstructured``, a block such as ``1x4``, or N:M.
        roles: Roles of the weights to look at.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.
        losses: Mean losses by name, of an earlier call for the same, which are not measured again;
            each that is measured is added.
        tell: Called at the begin, and after each batch, with how many losses are known, how many
            there will be, and the estimated seconds until then (None at the begin).

    Raises:
        PassError: The pattern is none, or does not fit a weight or a level; a weight has a mask;
            there is no weight, or no batch; or a loss is not finite.

    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 4))
    >>> def loss(outputs, number):
    ...     return (10 - outputs["output"]).sum()
    >>> found = measure_sensitivity(
    ...     program, [{"input": torch.ones(1, 4)}], loss, levels=(0.25, 0.5), roles=("other",)
    ... )
    >>> found.base, found.curves["weight"].points
    (0.0, ((0.25, 1.0), (0.5, 3.0)))
    """
    chosen = select_weights(program, roles, include, exclude)
    places = _places(program, chosen)
    shape = _checked_pattern(program, places, levels, pattern)
    if not places:
        why = f" ({chosen.skipped[0]})" if chosen.skipped else ""
        raise PassError(f"there is no linear to measure{why}", who=_WHO)
    runs = ChangedRuns(program, batches, places)
    if not runs.count:
        raise PassError("there is no batch to measure on", who=_WHO)
    changes: dict[float | None, Change] = {level: _pruned(level, shape) for level in levels}
    changes[None] = _INT8
    found = {} if losses is None else losses
    _measure(runs, loss, _cases(places, changes), found, tell)
    base = found[UNTOUCHED]
    curves = {
        name: LossCurve(tuple((level, found[_key(name, level)] - base) for level in sorted(levels)))
        for name in places
    }
    return Sensitivity(base, curves, {name: found[_key(name, None)] - base for name in places})


def _places(program: Program, found: Selection) -> dict[str, tuple[fx.Node, ...]]:
    """Return the linears that read each chosen weight."""
    if found.masked:
        raise PassError(
            f"{len(found.masked)} weights have masks, which decide what is zero",
            who=_WHO,
            where=found.masked[0],
            hint="run fold-masks before",
        )
    readers = {name: _readers(program.graph, name) for name in found.chosen}
    return {name: nodes for name, nodes in readers.items() if nodes}


def _key(name: str, level: float | None) -> str:
    return f"{name} {'int8' if level is None else level}"


def _cases(
    places: Iterable[str], changes: Mapping[float | None, Change]
) -> dict[str, tuple[str, Change] | None]:
    """Return all that is measured: which weight is changed, and how; None for none."""
    cases: dict[str, tuple[str, Change] | None] = {UNTOUCHED: None}
    for name, (level, change) in itertools.product(places, changes.items()):
        cases[_key(name, level)] = name, change
    return cases


@torch.no_grad()
def _measure(
    runs: ChangedRuns,
    loss: Loss,
    cases: Mapping[str, tuple[str, Change] | None],
    losses: dict[str, float],
    tell: Tell | None,
) -> None:
    """Add the mean loss of each case that is not known."""
    work = {key: len(runs.nodes(case[0] if case else None)) for key, case in cases.items()}
    clock = _Clock(work, losses, runs.count, tell)
    for key, case in cases.items():
        if key in losses:
            continue
        total = 0.0
        for number, outputs in enumerate(runs.changed(*case) if case else runs.untouched()):
            total += float(loss(outputs, number))
            if number + 1 < runs.count:  # the last one counts when the loss is known
                clock.tick(key)
        if not math.isfinite(total):
            what = "of the untouched model" if case is None else f"with {key}"
            raise PassError(f"the loss {what} is {total}", who=_WHO)
        losses[key] = total / runs.count
        clock.tick(key)


class _Clock:
    """Tells how many losses are known, and the time until all are: by nodes that are computed."""

    def __init__(
        self, work: Mapping[str, int], losses: Mapping[str, float], count: int, tell: Tell | None
    ) -> None:
        self._work, self._losses, self._count, self._tell = work, losses, count, tell
        self._all = sum(nodes for key, nodes in work.items() if key not in losses)
        self._done = 0.0
        self._began = time.monotonic()
        self._say(None)

    def tick(self, key: str) -> None:
        """Count one batch of a measurement."""
        self._done += self._work[key] / self._count
        self._say((time.monotonic() - self._began) * (self._all / self._done - 1))

    def _say(self, left: float | None) -> None:
        if self._tell is not None:
            self._tell(len(self._losses), len(self._work), left)


def _checked_pattern(
    program: Program, names: Iterable[str], levels: Sequence[float], text: str
) -> Pattern:
    try:
        pattern = parse_pattern(text)
    except ValueError as error:
        raise PassError(f"pattern={text!r}: {error}", who=_WHO, where="pattern") from error
    most = pattern.sparsity if isinstance(pattern, GroupWise) else 1.0
    if max(levels) > most:
        raise PassError(
            f"{pattern} ends at a sparsity of {most:g}, not {max(levels):g}",
            who=_WHO,
            where="levels",
        )
    end = most if isinstance(pattern, GroupWise) else 0.0
    for name in names:
        if why := unfit(program.tensor(name).shape, end, pattern):
            raise PassError(why, who=_WHO, where=name)
    return pattern


def _pruned(level: float, shape: Pattern) -> Change:
    return Change(lambda weight: weight * mask_for(weight.abs(), level, shape))


def _int8(weight: Tensor) -> Tensor:
    rounded: Tensor = fake_quantize_weight(weight, _now(weight), 0, -127, 127, 0)
    return rounded


def _uint8(value: Tensor) -> Tensor:
    low, high = torch.aminmax(value)
    rounded: Tensor = fake_quantize(value, low, high, _now(value), 0, 0, 255)
    return rounded


def _now(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device)


_INT8 = Change(_int8, _uint8)


def _readers(graph: fx.Graph, name: str) -> tuple[fx.Node, ...]:
    found = graph.find_nodes(op="call_function", target=aten.linear.default)
    return tuple(node for node in found if weight_of(node) == name)
