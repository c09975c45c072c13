"""Conditions on the sizes of inputs: where a graph holds that was captured at one choice of sizes.

A model may ask for a size in Python (``if ids.shape[1] > 512``). Export goes one way there, and
notes the condition. A condition is a text over the names of dynamic dimensions, which may come from
a file.

>>> holds("sequence % 4 == 0", {"sequence": 8}), holds("min(12, n) == n", {"n": 20})
(True, False)
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

from sparsefx.arithmetic import compute, names_in, parsed

__all__ = ["broken", "check_condition", "holds", "is_same"]


def holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition holds for the sizes of all dimensions that it names."""
    try:
        return bool(compute(condition, sizes.__getitem__))
    except ArithmeticError:
        return False


def broken(conditions: Iterable[str], sizes: Mapping[str, int]) -> str | None:
    """Return the first condition that does not hold, of those on dimensions with a size here.

    >>> broken(["n < 9", "n % 4 == 0", "m == 1"], {"n": 6})
    'n % 4 == 0'
    """
    known = (each for each in conditions if names_in(each) <= sizes.keys())
    return next((each for each in known if not holds(each, sizes)), None)


def check_condition(condition: str) -> None:
    """Refuse a text that :func:`holds` cannot evaluate.

    Raises:
        ValueError: It is no expression of names, numbers, arithmetic and comparisons.
    """
    try:
        holds(condition, dict.fromkeys(names_in(condition), 1))
    except ValueError as error:
        raise ValueError(f"{condition!r} is no condition on sizes: {error}") from error


def is_same(condition: str) -> bool:
    """Whether a size is compared with itself, which holds in every call.

    >>> is_same("choices * batch == batch * choices"), is_same("choices == batch")
    (True, False)
    """
    match parsed(condition):
        case ast.Compare(left, [ast.Eq()], [right]):
            return sorted(_factors(left)) == sorted(_factors(right))
    return False


def _factors(node: ast.AST) -> list[str]:
    match node:
        case ast.BinOp(left, ast.Mult(), right):
            return _factors(left) + _factors(right)
    return [ast.dump(node)]
