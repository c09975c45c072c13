from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from sparsefx.errors import DataError
from sparsefx.train.metrics import Score, evaluate, metric_values, paired_difference


def _random(classes: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, classes, count).astype(float)
    logits = generator.normal(size=(count, classes))
    logits[np.arange(count), labels.astype(int)] += 1
    return logits, labels


def interval(score: Score) -> tuple[float, float]:
    assert score.low is not None
    assert score.high is not None
    return score.low, score.high


def width(score: Score) -> float:
    low, high = interval(score)
    return high - low


@pytest.mark.parametrize("classes", [2, 3])
def test_agrees_with_scikit_learn(classes: int) -> None:
    logits, labels = _random(classes)
    predicted = logits.argmax(1).astype(float)
    ours = metric_values("matthews", predicted, labels)["matthews"]
    assert ours == pytest.approx(matthews_corrcoef(labels, predicted))
    if classes == 2:
        parts = metric_values("accuracy_f1", predicted, labels)
        assert parts["f1"] == pytest.approx(f1_score(labels, predicted))
        assert parts["accuracy_f1"] == pytest.approx((parts["accuracy"] + parts["f1"]) / 2)


def test_correlations_with_ties() -> None:
    left, right = np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 3.0, 9.0])
    parts = metric_values("pearson_spearman", left, right)
    assert parts["spearman"] == pytest.approx(1.0)
    assert parts["pearson"] == pytest.approx(np.corrcoef(left, right)[0, 1])


@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson_spearman"])
def test_constant_predictions_score_zero(metric: str) -> None:
    zeros = np.zeros(4)
    values = metric_values(metric, zeros, np.array([0.0, 1.0, 1.0, 0.0]))  # type: ignore[arg-type]
    assert next(iter(values.values())) == 0.0


def test_intervals_hold_the_value() -> None:
    logits, labels = _random(2)
    for metric in ("accuracy", "f1", "matthews"):
        score = evaluate(metric, logits, labels)
        low, high = interval(score)
        assert low < score.value < high
    regression = evaluate("pearson_spearman", labels[:, None] + 0.3 * logits[:, :1], labels)
    low, high = interval(regression)
    assert low < regression.value < high < 1
    assert str(evaluate("accuracy", logits, labels)).endswith(")")


def test_paired_interval_is_narrower() -> None:
    logits, labels = _random(2)
    changed = logits.copy()
    changed[:6] *= -1
    difference = paired_difference("accuracy", changed, logits, labels)
    alone = evaluate("accuracy", changed, labels)
    assert difference.value == pytest.approx(
        alone.value - evaluate("accuracy", logits, labels).value
    )
    assert width(difference) < width(alone) / 2


def test_outputs_that_are_no_numbers_are_refused() -> None:
    outputs = np.array([[0.9, 0.1], [np.nan, 0.8]])
    with pytest.raises(DataError, match="for 1 of 2 examples the model's outputs are NaN"):
        evaluate("accuracy", outputs, np.array([0.0, 0.0]))


def test_empty_and_unequal() -> None:
    with pytest.raises(DataError, match="0 outputs cannot be scored against 0 labels"):
        evaluate("accuracy", np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(DataError, match="1 outputs cannot be scored against 2 labels"):
        evaluate("accuracy", np.zeros((1, 2)), np.zeros(2))
