"""The learning-rate modifiers of SparseML, as one schedule of a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from sparsefx.importers.result import Notes, number_of, share
from sparsefx.importers.sparseml_file import Modifier
from sparsefx.recipe import ScheduleSettings

__all__ = ["rate_settings"]

_CONSTANT = ScheduleSettings(kind="constant", warmup=0)
_WITHOUT_EFFECT = ("start_epoch", "end_epoch", "constant_logging")
_FUNCTION = "LearningRateFunctionModifier"
_Kind = Literal["constant", "linear", "cosine"]


def rate_settings(
    items: Sequence[Modifier], begin: float, end: float, notes: Notes
) -> tuple[float | None, ScheduleSettings]:
    """Return the peak learning rate (None: not said) and the schedule of a stage.

    The modifier that is at work when the stage begins decides; the others are listed.

    Args:
        items: The learning-rate modifiers, epochs counted from the start of the run.
        begin: First epoch of the stage.
        end: Last epoch of the stage.
        notes: Where all is listed.
    """
    started = [item for item in items if _start(item) <= begin]
    first = max(started, key=_start, default=None)
    then = _behind_warmup(first, items, begin, end) if first else None
    for item in items:
        if begin < _start(item) < end and item is not then:
            notes.leave(item.kind, f"at epoch {_start(item):g}: a stage has one schedule")
    if first is None:
        notes.leave("learning rate", f"none is set at epoch {begin:g}; sparsefx's default holds")
        return None, ScheduleSettings()
    item = first
    for other in started:
        if other is not item and _start(other) == _start(item):
            notes.leave(other.kind, f"{item.kind} sets the rate at the same epoch")
    if item.kind == "SetLearningRateModifier":
        rest = dict(item.settings)
        rate = _rate(rest, "learning_rate", item.kind)
        notes.leave_rest(item.kind, {key: rest[key] for key in rest if key not in _WITHOUT_EFFECT})
        if not rate:
            notes.leave(item.kind, f"{rate}: a stage needs a rate; sparsefx's default holds")
            return None, ScheduleSettings()
        notes.carry(item.kind, f"constant rate {rate}")
        return rate, _CONSTANT
    if item.kind == "LearningRateModifier":
        return _by_class(item, notes)
    if then is None:
        return _by_function(item, begin, end, notes)
    warmup = share(_start(then) - begin, end - begin)
    notes.carry(item.kind, f"warm-up over {warmup} of the steps")
    rate, schedule = _by_function(then, _start(then), end, notes)
    return rate, schedule.model_copy(update={"warmup": str(warmup)})


def _behind_warmup(
    rise: Modifier, items: Sequence[Modifier], begin: float, end: float
) -> Modifier | None:
    """Return the function that goes on where another one has risen from zero; None if none does."""
    given = dict(rise.settings)
    stop, course = given.get("end_epoch", -1.0), given.get("lr_func", "linear")
    if (rise.kind, course, _start(rise)) != (_FUNCTION, "linear", begin):
        return None
    low, top = (_rate(given, key, rise.kind) for key in ("init_lr", "final_lr"))
    if low != 0:
        return None
    for item in items:
        same = item.kind == _FUNCTION and _rate(dict(item.settings), "init_lr", item.kind) == top
        if top and same and _start(item) == stop < end:
            return item
    return None


def _by_function(
    item: Modifier, begin: float, end: float, notes: Notes
) -> tuple[float | None, ScheduleSettings]:
    rest = dict(item.settings)
    start, stop = rest.pop("start_epoch", 0.0), rest.pop("end_epoch", end)
    rest.pop("constant_logging", None)
    function = rest.pop("lr_func", "linear")
    high = _rate(rest, "init_lr", item.kind)
    low = _rate(rest, "final_lr", item.kind) or 0.0
    notes.leave_rest(item.kind, rest)
    if high is None:
        notes.leave(f"{item.kind}.init_lr", "it is not said; sparsefx's default holds")
        return None, ScheduleSettings()
    if low > high:
        why = f"from {high:g} to {low:g}: a rate rises in warm-up alone; it stays at the latter"
        notes.leave(f"{item.kind}.init_lr", why)
        return low, _CONSTANT
    kind: _Kind = function if function in ("linear", "cosine") else "constant"
    if kind == "constant":
        notes.leave(f"{item.kind}.lr_func", f"{function!r} is not here; the rate stays at {high}")
        return high, _CONSTANT
    if start < begin and stop > start:
        done = min(1.0, (begin - start) / (stop - start))
        if kind == "cosine":
            notes.leave(f"{item.kind}.lr_func", f"cosine anew from epoch {begin:g}, not its rest")
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        high += (low - high) * done
    if high <= 0:
        notes.leave(item.kind, f"its rate is 0 from epoch {begin:g} on; the default is used")
        return None, ScheduleSettings()
    if low:
        notes.leave(f"{item.kind}.final_lr", f"{low}: schedules end at zero here")
    if abs(stop - end) > 1e-6 and stop >= 0:
        notes.leave(f"{item.kind}.end_epoch", f"{stop:g}: the schedule ends with the stage")
    notes.carry(item.kind, f"{kind} from {high:g} to zero")
    return high, ScheduleSettings(kind=kind, warmup=0)


def _by_class(item: Modifier, notes: Notes) -> tuple[float | None, ScheduleSettings]:
    rest = dict(item.settings)
    rate, kind = _rate(rest, "init_lr", item.kind), rest.get("lr_class")
    then = f"the rate stays at {rate}" if rate else "sparsefx's default holds"
    why = f"{kind} with {rest.get('lr_kwargs', {})} is not here; {then}"
    notes.leave(f"{item.kind}.lr_class", why)
    return rate or None, _CONSTANT


def _rate(settings: dict[str, Any], key: str, kind: str) -> float | None:
    """Return a rate, None where it is not said."""
    value = settings.pop(key, None)
    if value is None:
        return None
    return number_of(value, f"{kind}.{key}", low=0.0)


def _start(item: Modifier) -> float:
    return max(0.0, float(item.settings.get("start_epoch", 0.0)))
