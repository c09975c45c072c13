"""Texts without labels, and what another model answers for them in place of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsefx.cli.saved import Saved, open_saved, tokenizer_of
from sparsefx.errors import DataError
from sparsefx.problem import MULTI_LABEL, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsefx.train.data.examples import Examples
    from sparsefx.train.data.tasks import Task

__all__ = ["answered_by", "check_outputs"]

_WHO = "evaluate"


def answered_by(
    other: str, texts: Examples, saved: Saved, metric: str | None, length: int, batch_size: int
) -> Task:
    """Return texts with the answers of a model as a task that another is scored on.

    Args:
        other: Place of the model that answers.
        texts: Without labels.
        saved: The model that will be scored.
        metric: By which; None for the first that fits the answers.
        length: Longest sequence in tokens.
        batch_size: Texts in a batch.

    Raises:
        DataError: The two do not answer the same question.
    """
    from sparsefx.cli.progress import counting
    from sparsefx.huggingface import load_tokenizer
    from sparsefx.train.data.batches import check_tokens, encode
    from sparsefx.train.data.fitting import metric_for
    from sparsefx.train.data.tasks import Task

    opened = open_saved(other)
    _check_alike(saved, opened, other)
    examples = encode(load_tokenizer(tokenizer_of(other)), texts, length)
    check_tokens(examples, opened.config)
    if saved.outputs is not None:
        check_outputs(saved.outputs, opened.outputs_on(examples, batch_size), other)
    with counting(_WHO, "asking the other model", "texts") as tell:
        logits = opened.predict(examples, batch_size, tell)
    kind = _kind(opened, logits)
    counted = tuple(map(str, range(logits.shape[-1])))
    classes = () if kind == "regression" else opened.classes or saved.classes or counted
    score: Any = metric  # metric_for names unknown ones
    labelled = replace(texts, labels=_labels(kind, logits))
    return Task(other, kind, classes, metric_for(kind, classes, score), {"test": labelled})


def check_outputs(ours: int, theirs: int, other: str) -> None:
    """Refuse heads of different sizes.

    Raises:
        DataError: With both.
    """
    if ours != theirs:
        raise _differ(f"it has {theirs} outputs, and the model {ours}", other)


def _check_alike(saved: Saved, opened: Saved, other: str) -> None:
    if saved.per_word or opened.per_word:
        raise _differ("answers for each token are not compared", other)
    if saved.outputs is not None and opened.outputs is not None:
        check_outputs(saved.outputs, opened.outputs, other)
    if saved.classes and opened.classes and saved.classes != opened.classes:
        ours, theirs = ", ".join(saved.classes), ", ".join(opened.classes)
        raise _differ(f"its outputs are {theirs}, and the model's {ours}", other)


def _differ(why: str, other: str) -> DataError:
    hint = "give two models with the same classes in the same order, or labels"
    return DataError(why, who=_WHO, where=f"--against {other}", hint=hint)


def _kind(opened: Saved, logits: NDArray[np.float32]) -> Kind:
    if logits.ndim == 1 or logits.shape[1] == 1:
        return "regression"
    several = opened.config.get("problem_type") == MULTI_LABEL
    return "multi-label" if several else "classification"


def _labels(kind: Kind, logits: NDArray[np.float32]) -> tuple[Any, ...]:
    if kind == "regression":
        return tuple(map(float, logits.reshape(-1)))
    if kind == "multi-label":
        return tuple(tuple(map(float, row)) for row in logits > 0)
    return tuple(map(int, logits.argmax(1)))
