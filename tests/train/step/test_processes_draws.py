"""What is drawn in several processes, and in batches in parts: dropout, and one choice for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsefx.errors import TrainingInterruptedError
from sparsefx.pipeline import Pipeline
from sparsefx.testing import small_encoder
from sparsefx.train.session import Session
from sparsefx.train.step.counts import Counts
from tests.train import tiny_run
from tests.train.two_processes import (
    accumulated,
    assert_stage_close,
    errors,
    result,
    run_two,
    session,
    steps,
)

REPLACING = """
name: tiny
seed: 5
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  pipeline: [set-dropout, "replace-modules{rate=0.5}"]
  training: {steps: 8, precision: fp32, freeze: ['^(?!successor)'], schedule: {kind: constant}}
  evaluate: false
"""


def replacing(folder: Path) -> Session:
    return session(folder, REPLACING, layers=2)


def test_a_choice_for_a_batch_holds_for_all_its_parts(tmp_path: Path) -> None:
    replacing(tmp_path / "alone").run()
    session(tmp_path / "parts", accumulated(3, REPLACING), layers=2).run()
    assert_stage_close(tmp_path / "parts", tmp_path / "alone")
    assert run_two(tmp_path / "two", replacing) == [0, 0], errors(tmp_path / "two")
    assert_stage_close(tmp_path / "two", tmp_path / "alone")


def test_choices_follow_the_rate_and_leave_the_generator_alone() -> None:
    program = Pipeline.parse("replace-modules{rate=0.25}").run(small_encoder())
    counts = Counts(program.train())
    state = torch.get_rng_state()
    device = torch.device("cpu")
    drawn = [bool(*counts.drawn({}, seed, device).values()) for seed in range(200)]
    again = [bool(*counts.drawn({}, seed, device).values()) for seed in range(200)]
    assert drawn == again
    assert sum(drawn) == pytest.approx(50, abs=20)
    assert torch.equal(torch.get_rng_state(), state)


# -- dropout ---------------------------------------------------------------------------------------

DROPOUT = """
name: tiny
seed: 5
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  pipeline: magnitude-prune{sparsity=0.8,end=60%,frequency=2}
  training: {steps: 6, precision: fp32}
  evaluate: false
"""


def dropping(folder: Path) -> Session:
    return session(folder, DROPOUT)


def dropping_stopped(folder: Path) -> Session:
    return session(folder, DROPOUT, listeners=[tiny_run.interrupt_at(3)])


def assert_equal_runs(folder: Path, other: Path) -> None:
    """Hold weights, masks and losses to be the same, bit for bit."""
    assert result(folder, "one").fingerprint() == result(other, "one").fingerprint()
    assert [line["loss"] for line in steps(folder)] == [line["loss"] for line in steps(other)]


def test_two_processes_with_dropout_go_on_bit_for_bit(tmp_path: Path) -> None:
    assert run_two(tmp_path / "whole", dropping) == [0, 0], errors(tmp_path / "whole")
    assert run_two(tmp_path / "cut", dropping_stopped) == [2, 2]
    assert not (tmp_path / "cut" / "result.json").exists()
    assert run_two(tmp_path / "cut", dropping) == [0, 0], errors(tmp_path / "cut")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


def test_parts_with_dropout_go_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = accumulated(3, DROPOUT)
    session(tmp_path / "whole", recipe).run()
    with pytest.raises(TrainingInterruptedError):
        session(tmp_path / "cut", recipe, listeners=[tiny_run.interrupt_at(3)]).run()
    session(tmp_path / "cut", recipe).run()
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    session(tmp_path / "off", recipe.replace("magnitude", "set-dropout,magnitude")).run()
    dropped, kept = (steps(tmp_path / name)[0]["loss"] for name in ("whole", "off"))
    assert dropped != pytest.approx(kept, rel=1e-6)  # or nothing was drawn at all
