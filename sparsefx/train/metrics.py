"""Metrics of tasks, each with a confidence interval, and paired differences.

All values are fractions (0.841, not 84.1), but for the mean loss on text, which is a loss.
Intervals are two-sided at 95 %: Wilson's for accuracy, which is exact enough down to a few
examples, percentile bootstrap for the others, over examples, or for a loss over batches of them.
Compare two models on the same examples by :func:`paired_difference` only: its interval is several
times narrower than that of the two scores, since most examples are answered alike by both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import DataError, did_you_mean
from sparsefx.train.counted import counts, is_counted, values_of

__all__ = [
    "LEAST_BATCHES",
    "MetricName",
    "Score",
    "ScoreName",
    "check_metric",
    "evaluate",
    "mean_loss",
    "metric_values",
    "paired_difference",
    "wilson",
]

MetricName = Literal[
    "accuracy",
    "accuracy_f1",
    "f1",
    "matthews",
    "pearson_spearman",
    "f1_micro",
    "entity_f1",
    "token_accuracy",
]
ScoreName = MetricName | Literal["loss"]
Floats = NDArray[np.float64]
_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_RESAMPLES = 1000
LEAST_BATCHES = 10
"""Of a loss; with this many the bootstrap's interval is a tenth too narrow."""


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval.

    Attributes:
        metric: Name of the metric that ``value`` holds.
        value: The score, or the difference of two scores, as a fraction.
        low: Lower end of the interval; None where there is too little to tell one from.
        high: Upper end of the interval, likewise.
        count: Examples it was computed on.
        parts: Every number the task reports (for ``accuracy_f1``: accuracy, f1 and their mean).
    """

    metric: ScoreName
    value: float
    low: float | None
    high: float | None
    count: int
    parts: Mapping[str, float]

    def __str__(self) -> str:
        scale, form = (1, ".4g") if self.metric == "loss" else (100, ".1f")
        value, low, high = (
            None if each is None else format(scale * each, form)
            for each in (self.value, self.low, self.high)
        )
        return f"{value} (too few for an interval)" if low is None else f"{value} ({low} to {high})"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "metric": self.metric,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "parts": dict(self.parts),
            "accuracy": self.parts.get("accuracy"),
        }


def check_metric(name: str) -> None:
    """Refuse a name that is no metric.

    Raises:
        DataError: Naming the nearest.
    """
    if name not in get_args(MetricName):
        raise DataError(
            f"there is no metric {name!r}",
            who="metrics",
            hint=did_you_mean(name, get_args(MetricName)),
        )


def evaluate(
    metric: MetricName,
    outputs: Floats,
    labels: Floats,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Score:
    """Score model outputs against labels.

    Args:
        metric: What to compute; the first entry of :func:`metric_values` is the headline.
        outputs: Logits of shape (examples, classes), or values of shape (examples,) or
            (examples, 1) for ``pearson_spearman``; of words, (examples, words, classes).
        labels: Class indices or target values, of shape (examples,); or 0 and 1, of shape
            (examples, classes), or of words, (examples, words) with -100 behind the last.
        seed: Seed of the bootstrap.
        classes: Their names, which ``entity_f1`` reads.

    Raises:
        DataError: There are no examples, the two lengths differ, or an output is not finite.

    >>> evaluate("accuracy", np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0.0, 0.0])).value
    0.5
    """
    predicted = _predictions(metric, outputs, labels, classes)
    parts = metric_values(metric, predicted, labels)
    value = next(iter(parts.values()))
    count = len(labels)
    if metric == "accuracy":
        low, high = wilson(value, count)
    else:
        low, high = _bootstrap(
            lambda rows: _headline(metric, predicted[rows], labels[rows]), count, seed
        )
    return Score(metric, value, low, high, count, parts)


def mean_loss(batches: Sequence[Mapping[str, float]], sizes: Sequence[int], seed: int = 0) -> Score:
    """Score a model by what it minimises, where there are no labels.

    Args:
        batches: The losses of each batch: ``loss`` and its terms.
        sizes: Examples in each batch.
        seed: Seed of the bootstrap, which draws whole batches: their examples have to be drawn by
            chance, not sorted.

    Returns:
        The means over all examples; smaller is better. Of fewer than ``LEAST_BATCHES`` batches
        there is no interval: it would come out too narrow, and of one batch 0 wide.

    >>> mean_loss([{"loss": 1.0}, {"loss": 4.0}], [2, 1])
    Score(metric='loss', value=2.0, low=None, high=None, count=3, parts={'loss': 2.0})
    """
    weights = np.asarray(sizes, dtype=np.float64)
    parts = {
        name: float(np.average([batch[name] for batch in batches], weights=weights))
        for name in batches[0]
    }
    count = int(weights.sum())
    if len(batches) < LEAST_BATCHES:
        return Score("loss", parts["loss"], None, None, count, parts)
    losses = np.asarray([batch["loss"] for batch in batches])
    low, high = _bootstrap(
        lambda rows: float(np.average(losses[rows], weights=weights[rows])), len(batches), seed
    )
    return Score("loss", parts["loss"], low, high, count, parts)


def paired_difference(
    metric: MetricName,
    outputs: Floats,
    reference: Floats,
    labels: Floats,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Score:
    """Return score(outputs) - score(reference) with the bootstrap interval of paired examples.

    Args:
        metric: What to compute.
        outputs: Outputs of the model in question; shapes as in :func:`evaluate`.
        reference: Outputs of the model it is compared with, for the same examples in order.
        labels: As in :func:`evaluate`.
        seed: Seed of the bootstrap.
        classes: Their names, which ``entity_f1`` reads.
    """
    ours, theirs = (_predictions(metric, each, labels, classes) for each in (outputs, reference))

    def difference(rows: NDArray[np.int64]) -> float:
        return _headline(metric, ours[rows], labels[rows]) - _headline(
            metric, theirs[rows], labels[rows]
        )

    low, high = _bootstrap(difference, len(labels), seed)
    ours_parts = metric_values(metric, ours, labels)
    theirs_parts = metric_values(metric, theirs, labels)
    parts = {name: ours_parts[name] - theirs_parts[name] for name in ours_parts}
    return Score(metric, next(iter(parts.values())), low, high, len(labels), parts)


def metric_values(metric: MetricName, predicted: Floats, labels: Floats) -> dict[str, float]:
    """Return every number of a metric, the headline first.

    Args:
        metric: Name of the metric.
        predicted: Predicted class indices, or values, of shape (examples,); for a metric of
            :mod:`~sparsefx.train.counted` the counts of each example, which hold all it needs.
        labels: True class indices, or values, of shape (examples,).

    >>> metric_values("matthews", np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    {'matthews': 0.5, 'accuracy': 0.6666666666666666}
    """
    if is_counted(metric):
        return values_of(metric, predicted)
    accuracy = float(np.mean(predicted == labels))
    if metric == "accuracy":
        return {"accuracy": accuracy}
    if metric == "matthews":
        return {"matthews": _matthews(predicted, labels), "accuracy": accuracy}
    if metric == "f1":
        return {"f1": _f1(predicted, labels), "accuracy": accuracy}
    if metric == "accuracy_f1":
        f1 = _f1(predicted, labels)
        return {"accuracy_f1": (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1}
    pearson = _pearson(predicted, labels)
    spearman = _pearson(_ranks(predicted), _ranks(labels))
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927).

    >>> low, high = wilson(0.84, 1500)
    >>> round(low, 4), round(high, 4)
    (0.8206, 0.8577)
    >>> wilson(1.0, 40)[1]
    1.0
    """
    square = _Z * _Z
    scale = 1 + square / count
    centre = (share + square / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / scale
    # Rounding must not put the share outside its own interval.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _predictions(
    metric: MetricName, outputs: Floats, labels: Floats, classes: Sequence[str]
) -> Floats:
    if len(labels) == 0 or len(outputs) != len(labels):
        raise DataError(
            f"{len(outputs)} outputs cannot be scored against {len(labels)} labels", who="metrics"
        )
    check_metric(metric)
    if broken := int((~np.isfinite(np.reshape(outputs, (len(labels), -1))).all(axis=1)).sum()):
        raise DataError(
            f"for {broken} of {len(labels)} examples the model's outputs are NaN or infinite",
            who="metrics",
            hint="sparsefx inspect names weights that are no numbers; else the training diverged",
        )
    if is_counted(metric):
        return counts(metric, outputs, labels, classes)
    if metric == "pearson_spearman":
        if np.size(outputs) != len(labels):
            raise DataError(
                f"a regression needs one output for each example, not {np.shape(outputs)}",
                who="metrics",
                hint="score a classifier on labels that are classes, with another metric",
            )
        return np.asarray(outputs, dtype=np.float64).reshape(len(labels))
    if np.ndim(outputs) != 2 or np.shape(outputs)[1] <= labels.max():
        raise DataError(
            f"outputs of shape {np.shape(outputs)} cannot tell class {labels.max():.0f}",
            who="metrics",
            hint="the model needs one output for each class of the data",
        )
    chosen: Floats = np.argmax(outputs, axis=1).astype(np.float64)
    return chosen


def _headline(metric: MetricName, predicted: Floats, labels: Floats) -> float:
    return next(iter(metric_values(metric, predicted, labels).values()))


def _bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, count, count)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _f1(predicted: Floats, labels: Floats) -> float:
    """F1 of class 1, as GLUE reports it; 0 when neither side holds a 1."""
    found = float(np.sum((predicted == 1) & (labels == 1)))
    total = float(np.sum(predicted == 1) + np.sum(labels == 1))
    return 2 * found / total if total else 0.0


def _matthews(predicted: Floats, labels: Floats) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 if one side is constant."""
    classes = int(max(predicted.max(), labels.max())) + 1
    pairs = predicted.astype(np.int64) * classes + labels.astype(np.int64)
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    guessed, true = confusion.sum(axis=1).astype(float), confusion.sum(axis=0).astype(float)
    total = float(len(labels))
    covariance = float(np.trace(confusion)) * total - float(guessed @ true)
    spread = (total**2 - float(guessed @ guessed)) * (total**2 - float(true @ true))
    return covariance / math.sqrt(spread) if spread > 0 else 0.0


def _pearson(left: Floats, right: Floats) -> float:
    """Pearson correlation; 0 when one side is constant."""
    a, b = left - left.mean(), right - right.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = (ends - (counts + 1) / 2.0).astype(np.float64)
    ranks: Floats = means[inverse]
    return ranks
