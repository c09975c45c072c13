"""Scores of texts with any number of classes, and of words."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from sparsefx.errors import DataError
from sparsefx.train.counted import entities
from sparsefx.train.metrics import evaluate, paired_difference

CLASSES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),  # begins with I, changes type
        ("O O", set()),
        ("S-PER B-LOC I-LOC E-LOC O", {("PER", 0, 1), ("LOC", 1, 4)}),  # BIOES
        ("U-PER B-LOC L-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),  # BILOU
        ("B-PER E-PER I-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
        ("", set()),
    ],
)
def test_entities(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def words(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of 40 sentences of 1 to 9 words; most answers are right."""
    generator = np.random.default_rng(seed)
    labels = np.full((40, 9), -100.0)
    for row in labels:
        row[: generator.integers(1, 10)] = generator.integers(0, len(CLASSES))
    logits = generator.normal(size=(40, 9, len(CLASSES)))
    right = np.maximum(labels, 0).astype(int)[..., None]
    np.put_along_axis(logits, right, np.take_along_axis(logits, right, 2) + 2, 2)
    return logits, labels


def test_entity_f1_counts_entities_of_all_sentences() -> None:
    logits, labels = words(0)
    tags = [[CLASSES[int(each)] for each in row[row >= 0]] for row in labels]
    answers = [[CLASSES[k] for k in row[: len(t)].argmax(1)] for row, t in zip(logits, tags)]  # noqa: B905
    pairs = [(entities(a), entities(t)) for a, t in zip(answers, tags, strict=True)]
    both = sum(len(a & t) for a, t in pairs)
    precision = both / sum(len(a) for a, _ in pairs)
    recall = both / sum(len(t) for _, t in pairs)
    score = evaluate("entity_f1", logits, labels, classes=CLASSES)
    assert 0 < score.value < 1
    assert score.value == pytest.approx(2 * precision * recall / (precision + recall))
    assert score.parts["precision"] == pytest.approx(precision)
    known = labels >= 0
    accuracy = (logits.argmax(2) == labels)[known].mean()
    assert score.parts["accuracy"] == pytest.approx(accuracy)
    assert evaluate("token_accuracy", logits, labels).value == pytest.approx(accuracy)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert score.count == 40


def test_what_stands_behind_the_last_word_does_not_count() -> None:
    logits, labels = words(1)
    other = np.where((labels < 0)[..., None], 9.0, logits)
    for metric in ("entity_f1", "token_accuracy"):
        first, second = (
            evaluate(metric, each, labels, classes=CLASSES) for each in (logits, other)
        )
        assert first == second


def test_f1_of_any_number_of_classes_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, (50, 4)).astype(float)
    logits = generator.normal(size=(50, 4)) + 2 * labels - 1
    score = evaluate("f1_micro", logits, labels)
    predicted = logits > 0
    assert score.value == pytest.approx(f1_score(labels, predicted, average="micro"))
    expected = {
        "precision": precision_score(labels, predicted, average="micro"),
        "recall": recall_score(labels, predicted, average="micro"),
        "accuracy": accuracy_score(labels, predicted),
    }
    assert {name: score.parts[name] for name in expected} == pytest.approx(expected)
    same = paired_difference("f1_micro", logits, logits, labels)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert paired_difference("f1_micro", labels * 2 - 1, logits, labels).value > 0


def test_nothing_found_scores_zero() -> None:
    score = evaluate("f1_micro", np.full((3, 2), -1.0), np.zeros((3, 2)))
    assert dict(score.parts) == {"f1_micro": 0, "precision": 0, "recall": 0, "accuracy": 1}


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"outputs of shape \(3, 2\) cannot be scored against"):
        evaluate("f1_micro", np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(DataError, match="cannot be scored"):
        evaluate("token_accuracy", np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(DataError, match="one output for each class of the data"):
        evaluate("entity_f1", np.zeros((3, 2, 5)), np.zeros((3, 4)), classes=CLASSES)
    with pytest.raises(DataError, match=r"5 outputs for each word .*, with 0 named classes"):
        evaluate("entity_f1", np.zeros((3, 2, 5)), np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"5 outputs for each word .* against labels up to 5"):
        evaluate("token_accuracy", np.zeros((3, 2, 5)), np.full((3, 2), 5))
