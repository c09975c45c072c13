"""Texts with labels or without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from sparsefx.errors import DataError
from sparsefx.problem import Kind

__all__ = ["Examples", "Label"]

_WHO = "task"
_WORDS = "words that are split already are joined by spaces, for a tokenizer that splits there"
_LABELS = (
    "a label is a class index (int) or a value (float), or a tuple: 0.0 or 1.0 for each class, or "
    "the class index of each word"
)
Label = float | tuple[float, ...]


@dataclass(frozen=True)
class Examples:
    """Texts, or pairs of texts, with labels or without.

    Lists, columns of pandas, arrays and tensors are taken too, and held as tuples of Python's own
    numbers and texts.

    Attributes:
        origin: Where they came from, for messages.
        texts: The first (or only) sentence of every example.
        pairs: The second sentence of every example, or None.
        labels: Of each text its class index (int) or target value (float); or a tuple: for each
            class 0.0 or 1.0 (float, or bool), where a text has any number of classes, or the class
            index (int) of each word, -100 for none, where words are what one blank separates. None
            for texts without.

    Raises:
        DataError: A text is none, a label is no number, or there are more of one than of another.
    """

    origin: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Label, ...] | None = None

    def __post_init__(self) -> None:
        """Check what was given by hand: encoding and training would fail later, or not at all."""
        for name in ("texts", "pairs", "labels"):
            if isinstance(given := getattr(self, name), Iterable) and not isinstance(given, str):
                object.__setattr__(self, name, tuple(map(_plain, given)))
        self._check("texts", self.texts, str, "a text", _WORDS)
        if self.pairs is not None:
            self._check("pairs", self.pairs, str, "a text", _WORDS)
        if self.labels is not None:
            self._check("labels", self.labels, (Real, tuple), "a number, or a tuple", _LABELS)
            self._check_tuples(self.labels)

    @property
    def per_word(self) -> bool:
        """Whether each word has a label."""
        first = self.labels[0] if self.labels else None
        return isinstance(first, tuple) and all(map(_is_index, first))

    def check_kind(self, kind: Kind, classes: int) -> None:
        """Hold the labels to what a task says they are: here their types alone tell it.

        Args:
            kind: Of the task.
            classes: How many it has.

        Raises:
            DataError: They are of another kind, or of more or fewer classes.
        """
        if not self.labels or kind == "text":
            return
        first, told = self.labels[0], ""
        if self.per_word != (kind == "token-classification"):
            told = f"{'' if self.per_word else 'not '}the class index (int) of each word"
        elif isinstance(first, tuple) != (kind in ("multi-label", "token-classification")):
            told = f"{'' if isinstance(first, tuple) else 'not '}a tuple"
        elif kind == "multi-label" and len(first) != classes:  # type: ignore[arg-type]  # a tuple
            told = f"of another length than the {classes} classes"
        if told:
            why = f"the task is {kind}, and labels[0] is {first!r}, {told}"
            raise DataError(why, who=_WHO, where=self.origin, hint=_LABELS)

    def _check_tuples(self, labels: Sequence[Label]) -> None:
        """Refuse labels of different forms, and more or fewer of them than classes or words."""
        for row, label in enumerate(labels):
            told = ""
            if isinstance(label, tuple) != isinstance(labels[0], tuple):
                told = f"labels[{row}] is {label!r}, and labels[0] is {labels[0]!r}"
            elif not isinstance(label, tuple):
                continue
            elif not label or not all(isinstance(each, Real) for each in label):
                told = f"labels[{row}] is {label!r}, not numbers"
            elif self.per_word:
                told = self._not_of_words(row, label)
            elif not {*label} <= {0, 1}:
                told = f"labels[{row}] is {label!r}, and each class is 0.0 or 1.0"
            elif len(label) != len(labels[0]):  # type: ignore[arg-type]  # a tuple, as this one
                told = f"labels[{row}] is {label!r}, of another length than labels[0]"
            if told:
                raise DataError(told, who=_WHO, where=self.origin, hint=_LABELS)

    def _not_of_words(self, row: int, label: tuple[float, ...]) -> str:
        if self.pairs is not None:
            return "labels of words are for single texts, and these are pairs"
        if not all(map(_is_index, label)):
            return f"labels[{row}] is {label!r}, not class indices"
        words = len(self.texts[row].split(" "))
        return "" if words == len(label) else f"labels[{row}] are {len(label)} for {words} words"

    def _check(
        self,
        name: str,
        given: Sequence[object],
        kind: type | tuple[type, ...],
        expected: str,
        hint: str,
    ) -> None:
        if not isinstance(given, tuple):
            told = f"{name} is {'one text' if isinstance(given, str) else repr(given)}"
            raise DataError(told, who=_WHO, where=self.origin, hint="give a tuple")
        wrong = next((row for row, each in enumerate(given) if not isinstance(each, kind)), None)
        if wrong is not None:
            told = f"{name}[{wrong}] is {given[wrong]!r}, not {expected}"
            raise DataError(told, who=_WHO, where=self.origin, hint=hint)
        if len(given) != len(self.texts):
            told = f"{len(given)} {name} for {len(self.texts)} texts"
            raise DataError(told, who=_WHO, where=self.origin, hint="give one for each text")

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Examples:
        """Return the examples of the given rows, in that order."""
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            pairs=None if self.pairs is None else tuple(self.pairs[row] for row in rows),
            labels=None if self.labels is None else tuple(self.labels[row] for row in rows),
        )

    def digest(self) -> str:
        """Return how many there are, and a hash of texts and labels."""
        content = json.dumps([self.texts, self.pairs, self.labels])
        return f"{len(self)} examples, {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _plain(given: Any) -> Any:
    """Return a text or a label as Python has it, where it is of numpy or torch."""
    if isinstance(given, tuple):
        return tuple(map(_plain, given))
    found = given.tolist() if hasattr(given, "tolist") else given
    return tuple(found) if isinstance(found, list) and found is not given else found


def _is_index(label: float) -> bool:
    """Whether a label is a class index; True and False say whether a text has a class."""
    return isinstance(label, Integral) and not isinstance(label, bool)
