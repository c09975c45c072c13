"""Which weights a modifier of SparseML names."""

from __future__ import annotations

import re
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.result import names_of
from sparsefx.importers.sparseml_file import Modifier

__all__ = ["EVERY", "expressions", "named", "some_names"]

EVERY = ("__ALL_PRUNABLE__", "__ALL__")
_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")


def some_names(value: Any, where: str) -> tuple[str, ...]:
    """Return the names of a list; a word for every weight stands alone.

    Raises:
        RecipeError: It is no list of names, or an empty one.
    """
    names = names_of(value, where)
    if not names:
        raise RecipeError(
            "it names no weight", where=where, hint="__ALL_PRUNABLE__ stands for all of them"
        )
    every = [name for name in names if name in EVERY]
    return tuple(every[:1]) or names


def named(item: Modifier) -> tuple[str, ...]:
    """Return the parameters of a modifier; one word stands for every weight."""
    final, where = item.settings.get("final_sparsity"), f"{item.kind}.params"
    if not isinstance(final, dict):
        return some_names(item.settings.get("params", EVERY[0]), where)
    names = [name for group in final.values() for name in some_names(group, where)]
    return some_names(names, where)


def expressions(names: Any) -> tuple[str, ...]:
    """Return names and ``re:`` expressions, which match from the start, as ours, which search."""
    return tuple(map(_expression, names))


def _expression(name: str) -> str:
    if not name.startswith("re:"):
        return f"^{re.escape(name)}$"
    flags = _FLAGS.match(name, 3)  # Python wants them before all else
    first, rest = (flags[0], name[flags.end() :]) if flags else ("", name[3:])
    return f"{first}^(?:{rest})" if "|" in rest else f"{first}^{rest}"
