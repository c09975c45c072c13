"""How the index of each embedding follows from the inputs, said without a graph.

A loaded artifact has no graph and no torch. The few ways in which encoders compute indices are
tried on all that a model may be asked, when the artifact is written; the one that always gives the
same is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import ProgramError

__all__ = ["Arrays", "Rule", "Trial", "check_index", "find_rule", "index_of", "too_long"]

Arrays = Mapping[str, NDArray[Any]]
Trial = tuple[Arrays, NDArray[Any]]
"""Inputs by name, and the index [batch or 1, sequence] for them."""

Rule = dict[str, str | int]
"""`{"kind": "input" | "positions" | "constant" | "counted", ...}`, see `index_of`."""


def check_index(name: str, index: NDArray[Any], rows: int) -> None:
    """Refuse rows that a table does not have: generated code reads without asking.

    Raises:
        ProgramError: An index is negative, or `rows` or more.
    """
    # As an unsigned number a negative one is larger than any table.
    if index.view(f"u{index.itemsize}").max() >= rows:
        low, high = int(index.min()), int(index.max())
        if low >= 0:
            _check_positions(index, rows)
        raise ProgramError(
            f"index {low if low < 0 else high} into an embedding of {rows} rows",
            who="cpu",
            where=name,
            hint="the tokenizer has to be the model's own, and no text longer than its positions",
        )


def _check_positions(index: NDArray[Any], rows: int) -> None:
    """Speak of tokens where an index counts them, as one of positions does.

    Raises:
        ProgramError: An index counts up by one until it is `rows` or more.
    """
    line = np.atleast_2d(index)[np.atleast_2d(index).max(axis=1).argmax()]
    counted = line[: int(line.argmax()) + 1]
    if len(counted) > 1 and (np.diff(counted) == 1).all():
        raise too_long(len(counted), rows - int(counted[0]))


def too_long(tokens: int, most: int) -> ProgramError:
    """The error for a text of more tokens than the model has positions for."""
    return ProgramError(
        f"a text of {tokens} tokens; the model takes {most}",
        who="cpu",
        where="sequence",
        hint=f"cut it: tokenizer(..., truncation=True, max_length={most})",
    )


def index_of(rule: Rule, inputs: Arrays) -> NDArray[np.int64]:
    """The index of every token, [batch or 1, sequence].

    input: the input `name` itself. positions: 0, 1, 2, ... plus `first`. constant: `value`
    everywhere. counted: like positions, but tokens of the input `name` that equal `skip` are not
    counted and get the index `skip` (RoBERTa).
    """
    length = next(iter(inputs.values())).shape[1]
    if rule["kind"] == "input":
        return np.asarray(inputs[str(rule["name"])], np.int64)
    if rule["kind"] == "positions":
        return np.arange(length)[None] + int(rule["first"])
    if rule["kind"] == "constant":
        return np.full((1, length), int(rule["value"]))
    skip = int(rule["skip"])
    real = inputs[str(rule["name"])] != skip
    return np.asarray(np.cumsum(real, axis=1) * real + skip)


def find_rule(trials: Sequence[Trial], special: int) -> Rule | None:
    """The rule that gives the index of all trials, or None.

    Args:
        trials: At least one.
        special: The token of padding, which "counted" may skip.
    """
    inputs, index = trials[0]
    for rule in _candidates(list(inputs), int(index.flat[0]), special):
        if all(_same(index_of(rule, inputs), index) for inputs, index in trials):
            return rule
    return None


def _candidates(names: Sequence[str], first: int, special: int) -> Iterator[Rule]:
    for name in names:
        yield {"kind": "input", "name": name}
    yield {"kind": "positions", "first": first}
    yield {"kind": "constant", "value": first}
    for name in names:
        yield {"kind": "counted", "name": name, "skip": special}


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    shape = (max(len(a), len(b)), a.shape[1])
    return a.shape[1] == b.shape[1] and np.array_equal(
        np.broadcast_to(a, shape), np.broadcast_to(b, shape)
    )
