"""Metrics that are ratios of counts: of texts with any number of classes, and of labels of words.

Each example gives five counts, so that a bootstrap over examples adds up rows:

    found, predicted, true    classes of a text, or entities: both, on either side
    right, all                answers: a text whose classes are all right, or words
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import DataError

__all__ = ["CountedName", "counts", "entities", "is_counted", "values_of"]

CountedName = Literal["f1_micro", "entity_f1", "token_accuracy"]
Floats = NDArray[np.float64]
_GOES_ON, _ENDS = frozenset("IEL"), frozenset("ESLU")
_MARKS = _GOES_ON | _ENDS | {"B"}


def is_counted(metric: str) -> TypeGuard[CountedName]:
    """Whether a metric is one of these."""
    return metric in get_args(CountedName)


def counts(metric: CountedName, outputs: Floats, labels: Floats, classes: Sequence[str]) -> Floats:
    """Return the counts of every example, of shape (examples, 5).

    Args:
        metric: What they are for.
        outputs: Logits of shape (examples, classes); of words, (examples, words, classes).
        labels: 0 or 1, of shape (examples, classes); of words class indices, of shape (examples,
            words), negative behind the last word of an example.
        classes: Names of the classes; for ``entity_f1`` with marks, as B-PER and I-PER.

    Raises:
        DataError: The shapes do not fit each other, a label has no output, or an output no name.
    """
    wanted = outputs.shape if metric == "f1_micro" else outputs.shape[:-1]
    if outputs.ndim != (2 if metric == "f1_micro" else 3) or labels.shape != wanted:
        raise DataError(
            f"outputs of shape {outputs.shape} cannot be scored against labels of shape "
            f"{labels.shape} by {metric}",
            who="metrics",
            hint="the model needs one output for each class of the data",
        )
    if metric == "f1_micro":
        return _of_texts(outputs > 0, labels > 0)
    most = outputs.shape[-1]
    if labels.max() >= most or (metric == "entity_f1" and len(classes) != most):
        raise DataError(
            f"{most} outputs for each word cannot be scored by {metric} against labels up to "
            f"{labels.max():.0f}, with {len(classes)} named classes",
            who="metrics",
            hint="give the name of each output as classes, in the order of the head",
        )
    answers = outputs.argmax(axis=-1)
    return np.array(
        [
            _of_words(ours[true >= 0], true[true >= 0].astype(int), metric, classes)
            for ours, true in zip(answers, labels, strict=True)
        ]
    )


def values_of(metric: CountedName, found: Floats) -> dict[str, float]:
    """Return every number of a metric from the counts of examples, the headline first.

    >>> values_of("f1_micro", np.array([[2.0, 2.0, 3.0, 0.0, 1.0], [1.0, 2.0, 1.0, 1.0, 1.0]]))
    {'f1_micro': 0.75, 'precision': 0.75, 'recall': 0.75, 'accuracy': 0.5}
    """
    both, predicted, true, right, everything = (float(each) for each in found.sum(axis=0))
    accuracy = right / everything if everything else 0.0
    if metric == "token_accuracy":
        return {"token_accuracy": accuracy}
    return {
        metric: 2 * both / (predicted + true) if predicted + true else 0.0,
        "precision": both / predicted if predicted else 0.0,
        "recall": both / true if true else 0.0,
        "accuracy": accuracy,
    }


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities (type, begin, end) in tags, as conlleval and seqeval find them.

    Marks before the type are B, I (inside), and E, L (last) or S, U (single) where tags have
    them; an entity that begins with I counts from there.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[tuple[str, int, int]] = set()
    kind: str | None = None
    begin = 0
    for place, tag in enumerate((*tags, "O")):
        mark, _, name = tag.partition("-")
        if kind is not None and (mark not in _GOES_ON or name != kind):
            found.add((kind, begin, place))
            kind = None
        if kind is None and mark in _MARKS:
            kind, begin = name, place
        if kind is not None and mark in _ENDS:
            found.add((kind, begin, place + 1))
            kind = None
    return found


def _of_texts(ours: NDArray[np.bool_], true: NDArray[np.bool_]) -> Floats:
    right = (ours == true).all(axis=1)
    columns = [(ours & true).sum(axis=1), ours.sum(axis=1), true.sum(axis=1), right]
    return np.stack([*columns, np.ones(len(ours))], axis=1).astype(np.float64)


def _of_words(
    ours: NDArray[np.int64], true: NDArray[np.int64], metric: CountedName, classes: Sequence[str]
) -> tuple[int, int, int, int, int]:
    right = int((ours == true).sum()), len(true)
    if metric == "token_accuracy":
        return 0, 0, 0, *right
    left, wanted = (entities([classes[each] for each in side]) for side in (ours, true))
    return len(left & wanted), len(left), len(wanted), *right
