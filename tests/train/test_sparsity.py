"""The sparsity that a stage tells while it trains."""

from __future__ import annotations

import pytest

from sparsefx import Pipeline
from sparsefx.recipe import Training
from sparsefx.train.data.batches import encode
from sparsefx.train.step.processes import Processes
from sparsefx.train.trainer import StageTrainer
from tests.train import tiny_run


def test_masks_of_a_teacher_do_not_count() -> None:
    student, teacher = (
        Pipeline.parse(f"magnitude-prune{{sparsity={share}}}").run(tiny_run.program())
        for share in (0.25, 0.75)
    )
    joined = Pipeline.parse("distill").run(student, programs={"teacher": teacher})
    given = tiny_run.data()
    trainer = StageTrainer(
        "one",
        Training(steps=1),
        joined,
        encode(given.tokenizer, given.task.split("train"), 16),
        "classification",
        steps=1,
        batch_size=8,
        seed=0,
        processes=Processes("cpu", 60.0),
    )
    assert trainer.sparsity == pytest.approx(0.25, abs=0.001)
