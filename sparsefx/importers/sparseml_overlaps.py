"""SparseML's pruning modifiers that name the same weights: here a weight has one mask."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparsefx.importers.overlaps import SAME_WEIGHTS
from sparsefx.importers.result import Notes
from sparsefx.importers.sparseml_file import Modifier
from sparsefx.importers.sparseml_names import EVERY, expressions, named

__all__ = ["go_on", "with_spared", "without_mask"]

_BY_GRADIENTS = ("OBSPruningModifier", "MovementPruningModifier")


def with_spared(items: Sequence[Modifier], notes: Notes) -> list[tuple[Modifier, tuple[str, ...]]]:
    """Return the modifiers that are kept, each with expressions of weights that it leaves alone.

    SparseML multiplies the masks of all; here the modifier that names a weight more closely prunes
    it: by its name, else by an expression, else all. Of two for the same weights the first stays.
    """
    kept: list[Modifier] = []
    for item in items:
        if any(set(named(item)) == set(named(other)) for other in kept):
            notes.leave(f"{item.kind} of {_told(item)}", SAME_WEIGHTS)
        else:
            kept.append(item)
    return [(item, _left_to(kept, item, notes)) for item in kept]


def without_mask(item: Modifier, pruners: Sequence[Modifier]) -> list[str]:
    """Return what a modifier names, and none of the pruners does."""
    return [
        name
        for name in named(item)
        if not any(name in named(other) or _is_part(name, other) for other in pruners)
    ]


def go_on(
    items: Sequence[Modifier], earlier: Sequence[Modifier], notes: Notes
) -> tuple[list[Modifier], bool]:
    """Return the pruners of a stage after those of earlier ones, and whether ramps go on.

    A ramp goes on from zeros that are folded into the weights: they are of the smallest magnitude,
    so with at least as many zeros from the first step on, they stay.
    """
    mine = {frozenset(named(item)): item for item in items}
    again = [(old, mine[key]) for old in earlier if (key := frozenset(named(old))) in mine]
    if again and len(again) == len(earlier) and all(_goes_on(old, new) for old, new in again):
        before = {frozenset(named(new)): _most(old) for old, new in again}
        return [_from(item, before.get(frozenset(named(item))), notes) for item in items], True
    for _, item in again:
        notes.leave(
            f"{item.kind} of {_told(item)}",
            "the masks of an earlier stage hold for these weights; a ramp goes on if all of that "
            "stage do, by magnitude, to no fewer zeros, with one mask_type and scope",
        )
    return [item for item in items if not any(item is new for _, new in again)], False


def _goes_on(old: Modifier, new: Modifier) -> bool:
    """Whether the zeros of one ramp are among the first of another."""
    finals = [item.settings.get("final_sparsity") for item in (old, new)]
    alike = [
        (
            item.settings.get("mask_type", "unstructured"),
            item.settings.get("global_sparsity", item.kind.startswith("Global")),
        )
        for item in (old, new)
    ]
    numbers = all(isinstance(each, int | float) for each in finals)
    single = numbers and alike[0] == alike[1] and new.kind not in _BY_GRADIENTS
    return single and _most(old) <= _least(new)


def _from(item: Modifier, sparsity: float | None, notes: Notes) -> Modifier:
    """Return a ramp that goes on from a sparsity when its stage begins."""
    if sparsity is None:
        return item
    initial, start = (item.settings.get(key, 0.0) for key in ("init_sparsity", "start_epoch"))
    known = isinstance(initial, int | float)
    if start > 0:
        notes.leave(f"{item.kind}.start_epoch", f"{start:g}: it goes on when its stage begins")
    if known and initial < sparsity:
        why = f"{initial:g}: it goes on from the {sparsity:g} of the stage before"
        notes.leave(f"{item.kind}.init_sparsity", why)
    first = max(initial, sparsity) if known else sparsity
    return Modifier(item.kind, {**item.settings, "init_sparsity": first, "start_epoch": 0.0})


def _left_to(items: Sequence[Modifier], item: Modifier, notes: Notes) -> tuple[str, ...]:
    """Return the expressions of what others name more closely than ``item`` does."""
    found: list[str] = []
    for other in items:
        closer = [name for name in named(other) if other is not item and _is_part(name, item)]
        if not closer:
            continue
        found += expressions(closer)
        if _least(other) < _most(item):
            notes.leave(
                f"{item.kind} of {_told(item)}",
                f"it spares {', '.join(closer)}, which a modifier with another sparsity names; "
                "SparseML applies both masks",
            )
    return tuple(dict.fromkeys(found))


def _is_part(name: str, item: Modifier) -> bool:
    """Whether a name, or an expression, is of weights that ``item`` takes less closely."""
    own = named(item)
    if name in own or name in EVERY:
        return False
    if own[0] in EVERY:
        return True
    wide = [each for each in own if each.startswith("re:")]
    return not name.startswith("re:") and any(re.search(e, name) for e in expressions(wide))


def _told(item: Modifier) -> str:
    return ", ".join(named(item))


def _sparsities(item: Modifier) -> list[float]:
    final = item.settings.get("final_sparsity")
    given = list(final) if isinstance(final, dict) else [final]
    return [float(each) for each in given if isinstance(each, int | float)]


def _least(item: Modifier) -> float:
    return min(_sparsities(item), default=0.0)


def _most(item: Modifier) -> float:
    return max(_sparsities(item), default=0.0)
