"""Weights that two pruning passes of a recipe may both take: a weight has one mask here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from sparsefx.properties import Property
from sparsefx.recipe import Stage
from sparsefx.recipe.amounts import NOMINAL_STEPS, parse_pipeline

__all__ = ["SAME_WEIGHTS", "overlaps"]

SAME_WEIGHTS = "an earlier one prunes the same weights; a weight has one mask here"

_LITERAL = re.compile(r"\^((?:\w|\\.)*)\$")
_SELECTION = ("roles", "include", "exclude")
_Options = Mapping[str, Any]


def overlaps(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return which passes may find that an earlier one took their weights, and what holds then.

    Whether two expressions match one weight cannot be known without the model.
    """
    found: list[tuple[str, str]] = []
    earlier: list[_Options] = []
    for stage in stages:
        for item in parse_pipeline(stage.pipeline, NOMINAL_STEPS).passes:
            if item.establishes & {Property.MASKED, Property.LOCKED} != {Property.MASKED}:
                continue
            options = vars(item)
            for other in earlier:
                if _settings(options) == _settings(other) or _disjoint(options, other):
                    continue
                why = f"a weight has one mask: of {_told(other)}, where an earlier pass takes it"
                found.append((f"{stage.name}: {item.name} of {_told(options)}", why))
            earlier.append(options)
        if "fold-masks" in stage.after:
            earlier.clear()
    return found


def _disjoint(one: _Options, two: _Options) -> bool:
    """Whether no weight can be of both."""
    if not set(one["roles"]) & set(two["roles"]):
        return True
    pairs = product(one["include"] or ("",), two["include"] or ("",))
    return all(
        a in two["exclude"] or b in one["exclude"] or _other_name(a, b) or _other_name(b, a)
        for a, b in pairs
    )


def _other_name(name: str, expression: str) -> bool:
    """Whether the first stands for one name alone, which the second does not match."""
    literal = _LITERAL.fullmatch(name)
    return bool(literal) and not re.search(expression, re.sub(r"\\(.)", r"\1", name[1:-1]))


def _settings(options: _Options) -> _Options:
    return {key: value for key, value in options.items() if key not in _SELECTION}


def _told(options: _Options) -> str:
    return ", ".join(map(repr, options["include"])) or "all weights"
