"""What an importer hands back: the recipe, what it holds, and what had no place in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from sparsefx.errors import RecipeError
from sparsefx.importers.overlaps import overlaps
from sparsefx.recipe import Recipe
from sparsefx.spec import format_value

__all__ = [
    "ALL_LINEARS",
    "Imported",
    "LeftOut",
    "Notes",
    "Share",
    "names_of",
    "number_of",
    "pass_text",
    "share",
]

ALL_LINEARS = ("encoder", "pooler", "head", "other")
"""The roles that linears have."""


class LeftOut(NamedTuple):
    """A setting that the recipe does not have as the file has it."""

    where: str
    """Path in the file, e.g. ``GMPruningModifier.leave_enabled``."""
    reason: str
    """Why, and what holds instead."""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Imported(NamedTuple):
    """A recipe made of another tool's file."""

    recipe: Recipe
    """Checked."""
    left_out: tuple[LeftOut, ...]
    """All that could not be carried over, in the order of the file."""
    carried: tuple[str, ...]
    """What was carried over: one line each, the setting and what it became."""


class Share(str):
    """A share of the steps of a stage, written without quotes in the text form of a pass."""

    __slots__ = ()


class Notes:
    """Collects both lists while a file is read."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.carried: list[str] = []

    def leave(self, where: str, reason: str) -> None:
        """List a setting that is not carried over."""
        self.left_out.append(LeftOut(where, reason))

    def carry(self, where: str, what: str) -> None:
        """List a setting that is carried over."""
        self.carried.append(f"{where} -> {what}")

    def leave_rest(self, where: str, rest: dict[str, Any]) -> None:
        """List every setting that nobody took."""
        for key, value in rest.items():
            self.leave(f"{where}.{key}", f"{value!r} has no counterpart")

    def result(self, recipe: Recipe) -> Imported:
        """Check the recipe and return it with both lists."""
        recipe.check(who="")  # import_text adds it, to every error
        for where, reason in overlaps(recipe.stages):
            self.leave(where, reason)
        return Imported(recipe, tuple(self.left_out), tuple(self.carried))


def share(part: float, whole: float) -> Share | int:
    """Return ``part`` of ``whole`` as a share such as ``65%``; 0 for none.

    >>> share(6.5, 10), share(0, 10), share(1, 3)
    ('65%', 0, '33.3333%')
    """
    if part <= 0:
        return 0
    percent = min(100.0, 100.0 * part / whole)
    return Share(f"{percent:.4f}".rstrip("0").rstrip(".") + "%")


def pass_text(name: str, **options: object) -> str:
    """Return the text form of a pass; options that are None or empty are left out.

    >>> pass_text("magnitude-prune", sparsity=0.9, end=Share("50%"), include=())
    'magnitude-prune{sparsity=0.9,end=50%}'
    """
    given = [
        f"{key}={value if isinstance(value, Share) else format_value(value)}"
        for key, value in options.items()
        if value is not None and value != () and value != []
    ]
    return f"{name}{{{','.join(given)}}}" if given else name


def names_of(value: object, where: str) -> tuple[str, ...]:
    """Return the names of a list; a single text is a list of one, null an empty one.

    >>> names_of("bert.encoder", "submodules"), names_of(None, "submodules")
    (('bert.encoder',), ())

    Raises:
        RecipeError: It is something else.
    """
    given = [value] if isinstance(value, str) else value or []
    if isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
        return tuple(given)
    raise RecipeError(f"expected a list of names, found {value!r}", where=where)


def number_of(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a number from ``low`` to ``high``; YAML reads ``5e-5`` as a text.

    Raises:
        RecipeError: It is none, or lies outside.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if low <= found <= high:
        return found
    limit = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
    span = f" of {limit}" if low > -math.inf else ""
    raise RecipeError(f"expected a number{span}, found {value!r}", where=where)
