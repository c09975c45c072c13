"""What is drawn in several processes, and in batches in parts: dropout, and one choice for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsefx.pipeline import Pipeline
from sparsefx.testing import small_encoder
from sparsefx.train.counts import Counts
from sparsefx.train.session import Session
from tests.train.two_processes import accumulated, assert_stage_close, errors, run_two, session

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
