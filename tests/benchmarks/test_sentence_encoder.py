"""The score of benchmarks/sentence_encoder.py, and the steps that its options set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import sentence_encoder
from sparsefx.recipe import Recipe
from sparsefx.train.differences import differences


def test_spearman_is_of_the_cosines() -> None:
    pairs = sentence_encoder.Pairs(("a", "a", "a"), ("b", "c", "d"), (5.0, 3.0, 0.5))
    angles = {"a": 0.0, "b": 0.1, "c": 0.5, "d": 1.5}

    def embed(texts: tuple[str, ...]) -> NDArray[np.float32]:
        found = [[length * np.cos(angles[t]), length * np.sin(angles[t])] for t, length in
                 zip(texts, (1.0, 2.0, 7.0), strict=True)]  # fmt: skip
        return np.array(found, dtype=np.float32)

    assert pairs.spearman(embed) == pytest.approx(100.0)


def test_steps_of_both_stages() -> None:
    shipped = Recipe.shipped("sparse-sentence-encoder")
    changed = sentence_encoder.with_steps(shipped, 7, 3)
    steps = [stage.training.steps for stage in changed.stages if stage.training]
    assert steps == [7, 3]


def test_the_committed_result_is_of_the_shipped_recipe() -> None:
    path = sentence_encoder.ROOT / "benchmarks" / "results" / "sentence_encoder.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    shipped = Recipe.shipped("sparse-sentence-encoder")
    assert [*differences(found["recipe"], shipped.settings(), "recipe")] == []
    assert found["pairs"] == 1500
