"""The ``eval(...)`` variables of SparseML recipes: arithmetic over names, and nothing else."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from sparsefx.errors import RecipeError, did_you_mean

__all__ = ["resolve_equations"]

_EQUATION = re.compile(r"\s*eval\((?P<text>.*)\)\s*", re.DOTALL)
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


def resolve_equations(value: Any, variables: Mapping[str, Any], who: str) -> Any:
    """Return ``value`` with every ``eval(...)`` in it computed.

    Args:
        value: A scalar, or lists and mappings of them.
        variables: What the names stand for; their values may be equations themselves.
        who: The file, for errors.

    Raises:
        RecipeError: A name is unknown or defined by itself, or it is no plain arithmetic.

    >>> resolve_equations(["eval(epochs * share)", 1], {"epochs": 10, "share": 0.5}, "recipe")
    [5.0, 1]
    """
    return _Resolver(variables, who).resolve(value, ())


def _number(value: Any) -> Any:
    """Return the number that a text is: YAML reads ``5e-5`` as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class _Resolver:
    def __init__(self, variables: Mapping[str, Any], who: str) -> None:
        self._variables = variables
        self._who = who

    def resolve(self, value: Any, pending: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [self.resolve(item, pending) for item in value]
        if isinstance(value, dict):
            return {key: self.resolve(item, pending) for key, item in value.items()}
        found = _EQUATION.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        text = found["text"]
        try:
            return self._compute(ast.parse(text.strip(), mode="eval").body, text, pending)
        except (SyntaxError, TypeError, ValueError, ZeroDivisionError) as error:
            raise self._refuse(text, str(error)) from error

    def _compute(self, node: ast.expr, text: str, pending: tuple[str, ...]) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._variable(node.id, text, pending)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            sides = [self._compute(side, text, pending) for side in (node.left, node.right)]
            if not all(isinstance(side, int | float) for side in sides):
                raise self._refuse(text, f"{ast.unparse(node)!r} computes with what is no number")
            return _OPERATORS[type(node.op)](*sides)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._compute(node.operand, text, pending))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function = _FUNCTIONS.get(node.func.id)
            if function is not None:
                return function(*(self._compute(item, text, pending) for item in node.args))
        raise self._refuse(text, f"{ast.unparse(node)!r} is no arithmetic over variables")

    def _variable(self, name: str, text: str, pending: tuple[str, ...]) -> Any:
        if name in pending:
            raise self._refuse(text, f"the variable {name!r} is defined by itself")
        if name not in self._variables:
            hint = did_you_mean(name, self._variables)
            raise self._refuse(text, f"the variable {name!r} is not defined", hint)
        return _number(self.resolve(self._variables[name], (*pending, name)))

    def _refuse(self, text: str, why: str, hint: str = "") -> RecipeError:
        return RecipeError(why, who=self._who, where=f"eval({text})", hint=hint)
