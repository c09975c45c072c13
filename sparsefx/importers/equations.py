"""The ``eval(...)`` variables of SparseML recipes: arithmetic over names, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sparsefx.arithmetic import compute
from sparsefx.errors import RecipeError, did_you_mean

__all__ = ["resolve_equations"]

_EQUATION = re.compile(r"\s*eval\((?P<text>.*)\)\s*", re.DOTALL)


def resolve_equations(value: Any, variables: Mapping[str, Any]) -> Any:
    """Return ``value`` with every ``eval(...)`` in it computed.

    Args:
        value: A scalar, or lists and mappings of them.
        variables: What the names stand for; their values may be equations themselves.

    Raises:
        RecipeError: A name is unknown or defined by itself, or it is no plain arithmetic.

    >>> resolve_equations(["eval(epochs * share)", 1], {"epochs": 10, "share": 0.5})
    [5.0, 1]
    """
    return _Resolver(variables).resolve(value, ())


def _number(value: Any) -> Any:
    """Return the number that a text is: YAML reads ``5e-5`` as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class _Resolver:
    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

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
            return compute(text, lambda name: self._variable(name, text, pending))
        except (ValueError, ArithmeticError) as error:
            raise _refusal(text, str(error)) from error

    def _variable(self, name: str, text: str, pending: tuple[str, ...]) -> Any:
        if name in pending:
            raise _refusal(text, f"the variable {name!r} is defined by itself")
        if name not in self._variables:
            hint = did_you_mean(name, self._variables)
            raise _refusal(text, f"the variable {name!r} is not defined", hint)
        return _number(self.resolve(self._variables[name], (*pending, name)))


def _refusal(text: str, why: str, hint: str = "") -> RecipeError:
    return RecipeError(why, where=f"eval({text})", hint=hint)
