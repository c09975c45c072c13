"""Arithmetic over names in a text, computed without running it as code: it may come from a file.

>>> compute("min(12, n) % 5 == 2", {"n": 20}.__getitem__)
True
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

__all__ = ["compute", "names_in", "parsed"]

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
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.And: lambda *values: all(values),
    ast.Or: lambda *values: any(values),
}
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


def compute(text: str, value_of: Callable[[str], Any]) -> Any:
    """Return what a text comes to; a text that is one name alone, whatever that stands for.

    Args:
        text: Names, numbers, operators, comparisons and a few functions.
        value_of: What a name stands for.

    Raises:
        ValueError: It is something else, or computes with what is no number.
        ArithmeticError: A division by zero, or a number that is too large.
    """
    try:
        return _value(parsed(text), value_of)
    except RecursionError as error:
        raise ValueError(f"{text[:40]!r}... is nested too deeply") from error


@cache
def names_in(text: str) -> frozenset[str]:
    """Return the names that a text computes with.

    Raises:
        ValueError: It is no expression.
    """
    nodes = list(ast.walk(parsed(text)))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return frozenset(n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in called)


@cache
def parsed(text: str) -> ast.expr:
    """Return the tree of a text.

    Raises:
        ValueError: It is no expression.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no expression") from error
    except (MemoryError, RecursionError) as error:
        raise ValueError(f"{text[:40]!r}... is nested too deeply") from error


def _value(node: ast.expr, value_of: Callable[[str], Any]) -> Any:
    match node:
        case ast.Name(name):
            return value_of(name)
        case ast.Constant(value=int() | float()):
            return node.value
    function, operands = _taken_apart(node)
    values = [_value(operand, value_of) for operand in operands]
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"{ast.unparse(node)!r} computes with what is no number")
    try:
        return function(*values)
    except TypeError as error:  # a function with too many values, or too few
        raise ValueError(f"{ast.unparse(node)!r}: {error}") from error


def _taken_apart(node: ast.expr) -> tuple[Callable[..., Any], list[ast.expr]]:
    """Return what a node calculates, and of which parts."""
    kind: type[ast.AST] = type(node)
    operands: list[ast.expr] = []
    match node:
        case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
            kind, operands = type(op), [left, right]
        case ast.UnaryOp(sign, operand):
            kind, operands = type(sign), [operand]
        case ast.BoolOp(junction, operands):
            kind = type(junction)
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS:
            return _FUNCTIONS[name], args
    if kind not in _OPERATORS:
        raise ValueError(f"{ast.unparse(node)!r} is no arithmetic over names")
    return _OPERATORS[kind], operands
