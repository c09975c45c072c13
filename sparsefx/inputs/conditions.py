"""Conditions on the sizes of inputs: where a graph holds that was captured at one choice of sizes.

A model may ask for a size in Python (``if ids.shape[1] > 512``). Export goes one way there, and
notes the condition. A condition is a text over the names of dynamic dimensions, which is evaluated
without running it as code, since it may come from a file.

>>> holds("sequence % 4 == 0", {"sequence": 8}), holds("min(12, n) == n", {"n": 20})
(True, False)
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

__all__ = ["check_condition", "holds", "is_same", "names_in"]

_OPERATORS: Final[Mapping[type, Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.And: lambda *values: all(values),
    ast.Or: lambda *values: any(values),
}
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {"min": min, "max": max}


def holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition holds for the sizes of all dimensions that it names."""
    try:
        return bool(_value(_parsed(condition), sizes))
    except ZeroDivisionError:
        return False


@cache
def names_in(condition: str) -> frozenset[str]:
    """Return the dimensions that a condition names."""
    names = {node.id for node in ast.walk(_parsed(condition)) if isinstance(node, ast.Name)}
    return frozenset(names - _FUNCTIONS.keys())


def check_condition(condition: str) -> None:
    """Refuse a text that :func:`holds` cannot evaluate.

    Raises:
        ValueError: It is no expression of names, numbers, arithmetic, comparisons, min and max.
    """
    try:
        _value(_parsed(condition), dict.fromkeys(names_in(condition), 1))
    except ZeroDivisionError:
        return
    except SyntaxError as error:
        raise ValueError(f"{condition!r} is no condition on sizes") from error


def is_same(condition: str) -> bool:
    """Whether two sizes of one name are compared, which every call does anyway."""
    match _parsed(condition):
        case ast.Compare(left, [ast.Eq()], [right]):
            return ast.dump(left) == ast.dump(right)
    return False


@cache
def _parsed(condition: str) -> ast.expr:
    return ast.parse(condition, mode="eval").body


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    function, parts = _taken_apart(node)
    if function is None:
        return sizes[node.id] if isinstance(node, ast.Name) else node.value  # type: ignore[attr-defined]  # a constant
    return function(*(_value(part, sizes) for part in parts))


def _taken_apart(node: ast.expr) -> tuple[Callable[..., Any] | None, list[ast.expr]]:
    """Return what a node calculates, None of a name or a number, and of which parts."""
    kind: type[ast.AST]
    match node:
        case ast.Name() | ast.Constant(value=int() | float()):
            return None, []
        case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
            kind, parts = type(op), [left, right]
        case ast.UnaryOp(sign, operand):
            kind, parts = type(sign), [operand]
        case ast.BoolOp(junction, parts):
            kind = type(junction)
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS:
            return _FUNCTIONS[name], args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is no part of a condition on sizes")
    if kind not in _OPERATORS:
        raise ValueError(f"{ast.unparse(node)!r} is no part of a condition on sizes")
    return _OPERATORS[kind], parts
