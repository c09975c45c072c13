"""Courses of the learning rate, as factors of its peak.

A schedule is a pure function of ``t``, the number of optimizer steps done before, so that a resumed
run needs nothing but the step. All rise linearly over ``warmup`` steps from factor 0 and but for
``constant`` reach 0 after ``total`` steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sparsefx.errors import PassError, TrainingError
from sparsefx.hooks import calling
from sparsefx.passbase import Pass, Window
from sparsefx.program import Program
from sparsefx.recipe import ScheduleSettings
from sparsefx.recipe.amounts import resolve

__all__ = [
    "Factor",
    "build",
    "constant",
    "cosine",
    "linear",
    "pruning_window",
    "rewind",
    "window_of",
]

Factor = Callable[[int], float]


def constant(total: int, warmup: int) -> Factor:
    """Rise, then stay at 1.

    >>> factor = constant(100, 10)
    >>> factor(5), factor(10), factor(99)
    (0.5, 1.0, 1.0)
    """
    return lambda t: t / warmup if t < warmup else 1.0


def linear(total: int, warmup: int) -> Factor:
    """Rise, then fall linearly to 0.

    >>> factor = linear(110, 10)
    >>> factor(5), factor(10), factor(60), factor(110)
    (0.5, 1.0, 0.5, 0.0)
    """
    return lambda t: t / warmup if t < warmup else max(0.0, (total - t) / max(1, total - warmup))


def cosine(total: int, warmup: int) -> Factor:
    """Rise, then fall to 0 along half a cosine.

    >>> factor = cosine(110, 10)
    >>> factor(10), round(factor(60), 6), factor(110)
    (1.0, 0.5, 0.0)
    """

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        progress = min(1.0, (t - warmup) / max(1, total - warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def rewind(total: int, warmup: int, window: Window) -> Factor:
    """Let the clock of a linear decay stand still while masks move (Prune OFA, section 3).

    With warm-up ``w``, total ``T``, window ``[t0, t1)`` of ``D`` steps, interval ``R`` and
    ``N = T - D``::

        t < w         t / w
        t < t0        (N - t) / (N - w)
        t0 <= t < t1  (N - t + floor((t - t0) / R) * R) / (N - w)
        t >= t1       (T - t) / (N - w)

    Within each interval the rate falls as it would without pruning, and is rewound at the next
    update. Weights and optimizer state are never rewound.

    >>> factor = rewind(100_000, 1_000, Window(0, 50_000, 1_000))
    >>> [round(factor(t), 4) for t in (500, 1_000, 1_999, 2_000, 60_000, 75_000, 100_000)]
    [0.5, 1.0204, 1.0, 1.0204, 0.8163, 0.5102, 0.0]
    """
    begin, end, every = window.begin, window.end, max(1, window.every)
    length = total - (end - begin)
    scale = max(1, length - warmup)

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        if t < begin:
            return (length - t) / scale
        if t < end:
            return (length - t + (t - begin) // every * every) / scale
        return max(0.0, (total - t) / scale)

    return factor


def build(settings: ScheduleSettings, total: int, window: Window | None) -> Factor:
    """Return the schedule of a stage.

    Args:
        settings: From the recipe.
        total: Optimizer steps of the stage.
        window: When masks move: what ``rewind`` follows, unless the settings say otherwise.

    Raises:
        TrainingError: The window is not known, or does not lie within the steps of the stage.
    """
    warmup = resolve(settings.warmup, total)
    if settings.kind == "constant":
        return constant(total, warmup)
    if settings.kind == "linear":
        return linear(total, warmup)
    if settings.kind == "cosine":
        return cosine(total, warmup)
    return rewind(total, warmup, _window(settings, total, warmup, window))


def _window(settings: ScheduleSettings, total: int, warmup: int, found: Window | None) -> Window:
    given = (settings.begin, settings.end, settings.every)
    if found is None and None in given:
        raise TrainingError(
            "the schedule 'rewind' follows a pruning pass, and none is active in this stage",
            who="schedule",
            hint="add magnitude-prune to the pipeline, or give begin, end and every",
        )
    known = found or Window(0, 0, 1)
    begin, end, every = (
        default if amount is None else resolve(amount, total)
        for amount, default in zip(given, (known.begin, known.end, known.every), strict=True)
    )
    if not 0 <= begin < end < total or total - (end - begin) <= warmup:
        raise TrainingError(
            f"the window from step {begin} to {end} and {warmup} warm-up steps leave no step of "
            f"{total} for the decay",
            who="schedule",
            hint="end the window earlier, e.g. at 65%, or shorten the warm-up",
        )
    return Window(begin, end, every)


def pruning_window(program: Program) -> Window | None:
    """Return when the masks of a Program move, in steps from now: as its active pass says."""
    return window_of(program.active, program.steps)


def _check_window(found: object) -> None:
    if found is not None and not isinstance(found, Window):
        raise PassError(
            f"it returned {found!r}, not a Window", hint="return Window(begin, end, every), or None"
        )


def window_of(passes: Iterable[Pass], steps: int = 0) -> Window | None:
    """Return when masks move, in steps from now: as the first pass says that moves any.

    Args:
        passes: At work now, or about to be run.
        steps: Optimizer steps of the Program so far.
    """
    for index, item in enumerate(passes):
        with calling(item, "mask_window", f"pass {index}", steps):
            window = item.mask_window(steps)
            _check_window(window)
        if window is not None:
            return window
    return None
