"""Which metrics say something about which labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsefx.errors import DataError, did_you_mean
from sparsefx.problem import Kind
from sparsefx.train.metrics import MetricName, ScoreName, check_metric

__all__ = ["metric_for"]

_WHO = "task"
_FITTING: Mapping[Kind, tuple[MetricName, ...]] = {
    "classification": ("accuracy", "matthews", "f1", "accuracy_f1"),
    "multi-label": ("f1_micro",),
    "token-classification": ("entity_f1", "token_accuracy"),
    "regression": ("pearson_spearman",),
}
_MARKED = ("B-", "I-")
_TOLD = {
    "classification": "classes",
    "multi-label": "any number of classes",
    "token-classification": "classes of words",
    "regression": "values",
}


def metric_for(kind: Kind, classes: Sequence[str], given: ScoreName | None = None) -> ScoreName:
    """Return the metric of a task, by default the first that fits its labels.

    Args:
        kind: What the labels are.
        classes: Their names.
        given: The metric that somebody wants.

    Raises:
        DataError: There is no such kind or metric, or the metric says nothing about these labels.
    """
    if kind not in _FITTING:
        hint = did_you_mean(kind, _FITTING)
        if kind == "text":
            hint = "texts without labels are a text_task, whose metric is their loss"
        raise DataError(f"there are no labels of the kind {kind!r}", who=_WHO, hint=hint)
    marked = any(name[:2] in _MARKED for name in classes)
    fit = _FITTING[kind] if kind != "token-classification" or marked else ("token_accuracy",)
    if given is None:
        return fit[0]
    check_metric(given)
    wrong = ""
    if given not in fit:
        wrong = f"is not for labels that are {_TOLD[kind]}"
        if given == "entity_f1" and fit == ("token_accuracy",):
            wrong += " without marks, as B-PER and I-PER have"
    elif given in ("f1", "accuracy_f1") and len(classes) > 2:
        wrong = f"looks at class 1 alone, and there are {len(classes)} classes"
        fit = fit[:2]
    if wrong:
        raise DataError(f"the metric {given!r} {wrong}", who=_WHO, hint=f"take {' or '.join(fit)}")
    return given
