"""SparseML's pruning modifiers that name the same weights: here a weight has one mask."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparsefx.importers.result import Notes
from sparsefx.importers.sparseml_file import Modifier
from sparsefx.importers.sparseml_modifiers import expressions

__all__ = ["apart"]

_EVERY = ("__ALL_PRUNABLE__", "__ALL__")


def apart(items: Sequence[Modifier], notes: Notes) -> list[tuple[Modifier, tuple[str, ...]]]:
    """Return the modifiers that are kept, each with expressions of weights that it leaves alone.

    SparseML multiplies the masks of all; here the modifier that names a weight more closely prunes
    it: by its name, else by an expression, else all. Of two for the same weights the first stays.
    """
    kept: list[Modifier] = []
    for item in items:
        if any(_names(item) == _names(other) for other in kept):
            why = "an earlier one prunes the same weights, and a weight has one mask here"
            notes.leave(f"{item.kind} of {_told(item)}", why)
        else:
            kept.append(item)
    return [(item, _left_to(kept, item, notes)) for item in kept]


def _left_to(items: Sequence[Modifier], item: Modifier, notes: Notes) -> tuple[str, ...]:
    """Return the expressions of what others name more closely than ``item`` does."""
    found: list[str] = []
    for other in items:
        closer = [name for name in _names(other) if other is not item and _is_part(name, item)]
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
    own = _names(item)
    if not own or name in own or name in _EVERY:
        return False
    if own[0] in _EVERY:
        return True
    wide = [each for each in own if each.startswith("re:")]
    return not name.startswith("re:") and any(re.search(e, name) for e in expressions(wide))


def _names(item: Modifier) -> tuple[str, ...]:
    """Return the parameters of a modifier; one word stands for every weight."""
    final = item.settings.get("final_sparsity")
    params = item.settings.get("params", _EVERY[0])
    groups = list(final.values()) if isinstance(final, dict) else [params]
    names = [n for group in groups for n in ([group] if isinstance(group, str) else group)]
    every = [name for name in names if name in _EVERY]
    return tuple(every[:1] or names)


def _told(item: Modifier) -> str:
    return ", ".join(_names(item))


def _sparsities(item: Modifier) -> list[float]:
    final = item.settings.get("final_sparsity")
    given = list(final) if isinstance(final, dict) else [final]
    return [float(each) for each in given if isinstance(each, int | float)]


def _least(item: Modifier) -> float:
    return min(_sparsities(item), default=0.0)


def _most(item: Modifier) -> float:
    return max(_sparsities(item), default=0.0)
