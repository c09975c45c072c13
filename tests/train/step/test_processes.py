"""Several processes, and batches in parts: the same run as one process with the whole batch."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sparsefx.errors import RecipeError, TrainingError
from sparsefx.masks import find_masks
from sparsefx.program import Program
from sparsefx.train.checkpoints import Checkpoint, Checkpoints
from sparsefx.train.events import Event, StageStarted, StepDone
from sparsefx.train.session import Session
from sparsefx.train.step.processes import Processes
from tests.train import tiny_run
from tests.train.two_processes import (
    RECIPE,
    Listener,
    accumulated,
    assert_stage_close,
    errors,
    result,
    run_two,
    session,
    start,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    session(folder).run()
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert run_two(folder) == [0, 0], errors(folder)
    return folder


def test_two_processes_follow_one(alone: Path, two: Path) -> None:
    assert_stage_close(two, alone)


def test_parts_follow_the_whole_batch(alone: Path, tmp_path: Path) -> None:
    """Five parts, where the last batch of an epoch has three examples: some are empty."""
    session(tmp_path, accumulated(5)).run()
    assert_stage_close(tmp_path, alone)


def interrupted(folder: Path) -> Session:
    return session(folder, RECIPE, listeners=[tiny_run.interrupt_at(4)])


def continued(folder: Path) -> Session:
    return session(folder, accumulated(2), listeners=[remember(folder)])


def remember(folder: Path) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, StageStarted):
            (folder / "done").write_text(str(event.done), encoding="utf-8")

    return listen


def test_two_processes_go_on_as_one(alone: Path, tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", interrupted) == [2, 2]
    assert all("interrupted" in error for error in errors(tmp_path / "run"))
    continued(tmp_path / "run").run()
    assert (tmp_path / "run" / "done").read_text() == "4"
    assert_stage_close(tmp_path / "run", alone)


class SavedSlowly:
    """In place of a session: process 1 notes whether process 0 had saved when it ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self) -> None:
        save = Checkpoints.save

        def slowly(checkpoints: Checkpoints, checkpoint: Checkpoint) -> Path:
            time.sleep(1.0)
            return save(checkpoints, checkpoint)

        Checkpoints.save = slowly  # type: ignore[assignment]  # in a process of its own
        try:
            interrupted(self.folder).run()
        finally:
            if os.environ["RANK"] == "1":
                found = [path.name for path in self.folder.glob("stages/1-one/checkpoints/*")]
                (self.folder / "seen").write_text(" ".join(found), encoding="utf-8")


def test_the_others_end_when_the_checkpoint_is_saved(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", SavedSlowly) == [2, 2]
    assert (tmp_path / "run" / "seen").read_text() == "step-00000004"


def test_one_process_goes_on_as_two(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        interrupted(tmp_path / "run").run()
    assert run_two(tmp_path / "run", continued) == [0, 0], errors(tmp_path / "run")
    assert (tmp_path / "run" / "done").read_text() == "4"
    assert_stage_close(tmp_path / "run", alone)


# -- observers -------------------------------------------------------------------------------------

QUANTIZED = """
name: tiny
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  pipeline: [set-dropout, "quantize-prepare{average=0.5}"]
  training: {steps: 2, precision: fp32, accumulate: 1, freeze: [embeddings]}
  evaluate: false
"""


def quantized(folder: Path) -> Session:
    return session(folder, QUANTIZED.replace("accumulate: 1", "accumulate: 2"))


def test_observers_move_once_for_a_batch(tmp_path: Path) -> None:
    """What is seen before anything is quantized is exactly what the whole batch shows."""
    wholes = session(tmp_path / "whole", QUANTIZED).run().program
    assert run_two(tmp_path / "parts", quantized) == [0, 0], errors(tmp_path / "parts")
    parts = result(tmp_path / "parts", "one")
    names = [name for name in wholes.named_tensors() if name.endswith(("_minimum", "_maximum"))]
    first = [name for name in names if "layer.0.attention.self.query.input" in name]
    assert len(first) == 2
    for name in names:
        tolerance = 1e-6 if name in first else 0.02
        torch.testing.assert_close(parts.tensor(name), wholes.tensor(name), rtol=0, atol=tolerance)


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_batch_is_not_cut_smaller_than_its_examples(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a batch of 7 cannot be computed in 8 parts") as caught:
        session(tmp_path / "run", accumulated(8)).run()
    assert caught.value.where == "stages[0].training"


PLAIN = """
name: plain
data: {max_length: 16, batch_size: 7}
stages: [{name: one, training: {steps: 100000, precision: fp32}, evaluate: false}]
"""


def endless(folder: Path) -> Session:
    return session(folder, PLAIN, listeners=[tell(folder)])


def tell(folder: Path) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            (folder / "three").touch()

    return listen


def test_a_process_that_ends_ends_the_others(tmp_path: Path) -> None:
    both = start(tmp_path / "run", endless)
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "three").exists():
        assert time.monotonic() < end, errors(tmp_path / "run")
        time.sleep(0.01)
    os.kill(both[1].pid, signal.SIGKILL)
    both[0].join(60)
    assert both[0].exitcode == 2
    (message,) = errors(tmp_path / "run")
    assert "process 0: another of the 2 processes ended, or does not answer" in message
    assert "start all of them again" in message


class Silent:
    """In place of a session: process 1 never answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self) -> None:
        processes = Processes("cpu", patience=3.0)
        if not processes.leads:
            time.sleep(100)
        processes.any([False])


def test_a_process_that_hangs_ends_the_others(tmp_path: Path) -> None:
    both = start(tmp_path / "run", Silent)
    both[0].join(60)
    both[1].kill()
    assert both[0].exitcode == 2
    assert "does not answer" in errors(tmp_path / "run")[0]


MASKED = """
name: masked
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  pipeline: magnitude-prune{sparsity=0.8,end=9}
  training: {steps: 9, precision: fp32}
  evaluate: false
"""


def strayed(folder: Path) -> Session:
    """Process 1 changes a mask after the second step."""
    if os.environ["RANK"] == "1":
        step = Program.step

        def stray(program: Program) -> None:
            step(program)
            if program.steps == 2:
                program.tensor(find_masks(program)[0].mask).zero_()

        Program.step = stray  # type: ignore[assignment]  # in a process of its own
    return session(folder, MASKED)


def test_a_mask_that_differs_is_named(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", strayed) == [2, 2]
    for message in errors(tmp_path / "run"):
        assert message.startswith("stage one at step 2 of 9: process 1 of 2 has another bert.")
        assert "_mask than process 0" in message


FISHER = """
name: fisher
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  pipeline: [set-dropout, "obert-prune{sparsity=0.5,begin=2,end=3,gradients=2,block=4}"]
  training: {steps: 4, precision: fp32}
  evaluate: false
"""


class Hashed:
    """In place of a session: writes down what is hashed after the start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self) -> None:
        check_same, seen = Processes.check_same, set[str]()

        def noting(self: Processes, digests: Mapping[str, str], **place: str) -> None:
            if not place["where"].startswith(("start", "step 0")):
                seen.update(digests)
            check_same(self, digests, **place)

        Processes.check_same = noting  # type: ignore[method-assign]  # in a process of its own
        session(self.folder, FISHER).run()
        (self.folder / f"hashed-{os.environ['RANK']}").write_text("\n".join(sorted(seen)))


def test_masks_are_hashed_and_the_fisher_matrices_are_not(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", Hashed) == [0, 0], errors(tmp_path / "run")
    hashed = (tmp_path / "run" / "hashed-0").read_text().splitlines()
    assert hashed == (tmp_path / "run" / "hashed-1").read_text().splitlines()
    assert hashed
    assert all(name.endswith("_mask") for name in hashed)


@pytest.mark.parametrize("count", [1, 2])
def test_a_failing_start_is_told_as_what_it_is(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("accelerate.Accelerator", fail)
    monkeypatch.setenv("RANK", str(count - 1))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    if count == 1:
        with pytest.raises(RuntimeError, match="no kernel image"):
            Processes("cpu", patience=1.0)
        return
    with pytest.raises(TrainingError, match="another of the 2 processes ended") as caught:
        Processes("cpu", patience=1.0)
    assert "no kernel image" in caught.value.why
    assert caught.value.who == "process 1"


def started_otherwise(folder: Path) -> Session:
    """Process 1 begins, or goes on, with another weight."""
    if os.environ["RANK"] == "1":
        load = Program.load

        def other(place: Path) -> Program:
            program = load(place)
            with torch.no_grad():
                program.tensor("classifier.bias").add_(1.0)
            return program

        Program.load = other  # type: ignore[assignment]  # in a process of its own
    return session(folder, MASKED)


def test_another_start_is_named(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", started_otherwise) == [2, 2]
    for message in errors(tmp_path / "run"):
        assert "stage one at step 0 of 9: process 1 of 2 has another classifier.bias" in message


@pytest.mark.parametrize(
    ("asked", "other", "place"),
    [
        ("lr: 5e-5", "lr: 1e-3", "recipe.stages[0].training.optimizer.learning_rate"),
        ("accumulate: 1", "accumulate: 2", "accumulate.one"),
    ],
)
def test_another_recipe_is_named(asked: str, other: str, place: str, tmp_path: Path) -> None:
    settings = "steps: 9, optimizer: {lr: 5e-5}, accumulate: 1"
    texts = [settings, settings.replace(asked, other)]
    recipes = [MASKED.replace("steps: 9", t.replace("lr:", "learning_rate:")) for t in texts]
    makes = [functools.partial(session, recipe=recipe) for recipe in recipes]
    assert run_two(tmp_path / "run", *makes) == [2, 2]
    for message in errors(tmp_path / "run"):
        assert f"process 1 of 2 has another {place} than process 0" in message
        assert "give all of them the same recipe and data" in message


def fewer(folder: Path) -> Session:
    made = session(folder, MASKED)
    made._source = tiny_run.data(unlabelled=19)
    return made


def test_other_data_are_named(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", functools.partial(session, recipe=MASKED), fewer) == [2, 2]
    assert "process 1 of 2 has another data.unlabelled" in errors(tmp_path / "run")[1]


def gone_on_otherwise(folder: Path) -> Session:
    """Process 1 finds another weight in the checkpoint."""
    if os.environ["RANK"] == "1":
        latest = Checkpoints.latest

        def other(self: Checkpoints) -> Checkpoint | None:
            found = latest(self)
            assert found is not None
            found.tensors["program/classifier.bias"].add_(1.0)
            return found

        Checkpoints.latest = other  # type: ignore[method-assign]  # in a process of its own
    return session(folder, MASKED)


def test_another_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        session(tmp_path / "run", MASKED, listeners=[tiny_run.interrupt_at(4)]).run()
    assert run_two(tmp_path / "run", gone_on_otherwise) == [2, 2]
    for message in errors(tmp_path / "run"):
        assert "stage one at step 4 of 9: process 1 of 2 has another classifier.bias" in message


def sharing_nothing(folder: Path) -> Session:
    place = folder if os.environ["RANK"] == "0" else folder / "elsewhere"
    return session(place, PLAIN)


def test_the_folder_has_to_be_shared(tmp_path: Path) -> None:
    assert run_two(tmp_path / "run", sharing_nothing) == [2, 2]
    assert "storage that all of them see" in errors(tmp_path / "run")[1]
