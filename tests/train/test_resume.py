"""A run that is killed, interrupted or damaged, and goes on: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsefx.errors import ArtifactError, TrainingInterruptedError
from sparsefx.huggingface import load_tokenizer
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train.checkpoints import Checkpoint, Checkpoints
from sparsefx.train.differences import differences
from sparsefx.train.events import Evaluated, Event, RunStarted, StageStarted
from sparsefx.train.runfolder import RunFolder
from sparsefx.train.session import Session
from sparsefx.train.stop import StopRequest
from tests.train import tiny_run
from tests.train.two_processes import servers

RECIPE = """
name: tiny
seed: 5
data: {max_length: 16, batch_size: 8}
stages:
- name: one
  pipeline: magnitude-prune{sparsity=0.8,end=60%,frequency=2}
  training:
    steps: 12
    data: labelled+unlabelled
    evaluate_every: 5
    schedule: {kind: rewind, warmup: 1}
- name: two
  teacher: model
  pipeline:
  - pattern-lock
  - quantize-prepare
  - distill{hidden=1}
  training: {steps: 6, precision: fp32, freeze: [embeddings], schedule: {kind: constant}}
  after: [strip-distillation, fold-masks, quantize-convert]
"""


def session(folder: Path, recipe: str = RECIPE, **options: Any) -> Session:
    given = tiny_run.data(unlabelled=20)
    options = {"checkpoint_seconds": 0.0, **options}
    return Session(Recipe.parse(recipe), tiny_run.program(), given, folder, device="cpu", **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def draw(event: Event) -> None:
    """Be a listener that takes from every generator."""
    torch.rand(3)
    np.random.rand(2)
    random.random()


def assert_same_run(folder: Path, whole: Path) -> None:
    places = sorted(path.relative_to(whole) for path in whole.glob("stages/*/program"))
    assert len(places) == 2
    for place in places:
        one, other = Program.load(folder / place), Program.load(whole / place)
        assert one.fingerprint() == other.fingerprint()
    assert lines(folder) == lines(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    session(folder, checkpoint_seconds=1e9).run()
    return folder


def wait_for(path: Path, process: Any) -> None:
    """Wait until ``path`` exists, or the process is over."""
    end = time.monotonic() + 600
    while not path.exists():
        over = process.poll() if hasattr(process, "poll") else process.exitcode
        assert over is None, f"it ended with {over} before {path.name}"
        assert time.monotonic() < end, f"no {path.name} after ten minutes"
        time.sleep(0.001)


def test_killed_process_goes_on(tmp_path: Path, whole: Path, checkout: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    step = random.Random().randint(2, 11)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.train.tiny_run", str(tmp_path / "run"), str(recipe)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    wait_for(tmp_path / "run" / "stages" / "1-one" / "checkpoints" / f"step-{step:08d}", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists(), f"killed after step {step}"
    events: list[Event] = []
    session(tmp_path / "run", listeners=[events.append]).run()
    started = next(event for event in events if isinstance(event, StageStarted))
    assert started.done >= step, f"killed after step {step}"
    assert_same_run(tmp_path / "run", whole)


def work(folder: Path, begun: Path) -> None:
    torch.set_num_threads(1)
    made = session(folder)
    begun.touch()
    made.run()


def killed(folder: Path, longest: float) -> int:
    """Kill a run after times that fall anywhere: in a step, a checkpoint, an evaluation, a save."""
    begun = folder.with_name("begun")
    for kills in range(6):
        begun.unlink(missing_ok=True)
        process = servers.Process(target=work, args=(folder, begun))
        process.start()
        wait_for(begun, process)
        process.join(random.Random().uniform(0.0, longest))
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return 6


def test_killed_again_and_again(tmp_path: Path, whole: Path) -> None:
    longest = 3.0
    while killed(tmp_path / "run", longest) == 0:  # it ended before the first kill
        shutil.rmtree(tmp_path / "run")
        longest /= 2
    session(tmp_path / "run").run()
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_does_what_it_always_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_interrupted_run_goes_on(tmp_path: Path, whole: Path) -> None:
    interrupt = tiny_run.interrupt_at(4, "two")
    with pytest.raises(TrainingInterruptedError) as caught:
        session(tmp_path / "run", listeners=[interrupt], checkpoint_seconds=1e9).run()
    assert caught.value.where == "step 4 of 6"
    assert "again" in caught.value.hint
    events: list[Event] = []
    session(tmp_path / "run", listeners=[events.append]).run()
    first = events[0]
    assert isinstance(first, RunStarted)
    assert first.finished == ("one",)
    assert next(e for e in events if isinstance(e, StageStarted)).done == 4
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("stage", ["one", "two"])
def test_an_interrupt_behind_the_last_step_of_a_stage_ends_the_run(
    tmp_path: Path, whole: Path, stage: str
) -> None:
    def interrupt(event: Event) -> None:
        last = {"one": 12, "two": 6}[stage]
        if isinstance(event, Evaluated) and (event.stage, event.step) == (stage, last):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterruptedError, match=f"stage {stage}: the run was interrupted"):
        session(tmp_path / "run", listeners=[interrupt], checkpoint_seconds=1e9).run()
    names = [place.parent.name for place in tmp_path.glob("run/stages/*/result.json")]
    assert sorted(names) == (["1-one"] if stage == "one" else ["1-one", "2-two"])
    session(tmp_path / "run").run()
    assert_same_run(tmp_path / "run", whole)


def interrupted(folder: Path, at: int) -> Path:
    """Stop in stage one; return the folder of its checkpoints."""
    with pytest.raises(TrainingInterruptedError):
        session(folder, listeners=[tiny_run.interrupt_at(at)]).run()
    return folder / "stages" / "1-one" / "checkpoints"


def test_a_cut_checkpoint_is_passed_over(tmp_path: Path, whole: Path) -> None:
    checkpoints = interrupted(tmp_path / "run", at=5)
    older, newest = sorted(checkpoints.iterdir())
    assert (older.name, newest.name) == ("step-00000004", "step-00000005")
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    events: list[Event] = []
    session(tmp_path / "run", listeners=[events.append]).run()
    assert next(e for e in events if isinstance(e, StageStarted)).done == 4
    assert_same_run(tmp_path / "run", whole)


def test_a_checkpoint_with_another_manifest_is_passed_over(tmp_path: Path, whole: Path) -> None:
    newest = max(interrupted(tmp_path / "run", at=5).iterdir())
    (newest / "manifest.json").write_text("[]", encoding="utf-8")
    session(tmp_path / "run").run()
    assert_same_run(tmp_path / "run", whole)


def test_damaged_lines_of_the_metrics_are_left_out(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path / "run", at=5)
    metrics = tmp_path / "run" / "metrics.jsonl"
    first, *others = metrics.read_bytes().splitlines(keepends=True)
    damaged = (bytes(40) + b"\n", first[:20] + b"\n", b'{"a": 1}\n', b"[1]\n", b"\xff\xfe\n")
    metrics.write_bytes(b"".join((first, *damaged, *others)))
    session(tmp_path / "run").run()
    assert "5 damaged lines are left out" in caplog.text
    assert_same_run(tmp_path / "run", whole)


def test_a_listener_that_draws_changes_no_run(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(TrainingInterruptedError):
        session(tmp_path / "run", listeners=[draw, tiny_run.interrupt_at(5)]).run()
    session(tmp_path / "run", listeners=[draw]).run()
    assert_same_run(tmp_path / "run", whole)


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(tmp_path: Path, whole: Path) -> None:
    interrupted(tmp_path / "run", at=5)
    assert lines(tmp_path / "run")[-1]["step"] == 5
    assert not any("metric" in line for line in lines(tmp_path / "run"))
    session(tmp_path / "run").run()
    assert_same_run(tmp_path / "run", whole)


def test_half_a_tokenizer_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tiny_run.data()

    def cut(folder: Path) -> None:
        Path(folder).mkdir()
        (Path(folder) / "tokenizer.json").write_text("{", encoding="utf-8")
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path, Recipe.parse(RECIPE), given)
    with monkeypatch.context() as patched:
        patched.setattr(given.tokenizer, "save_pretrained", cut)
        with pytest.raises(KeyboardInterrupt):
            folder.save_tokenizer()
    assert not (tmp_path / "tokenizer").exists()
    folder.save_tokenizer()
    again = load_tokenizer(str(tmp_path / "tokenizer"))
    assert again.get_vocab() == given.tokenizer.get_vocab()
    assert [each.name for each in tmp_path.iterdir()] == ["tokenizer"]


def test_only_cut_checkpoints_are_an_error(tmp_path: Path) -> None:
    checkpoints = interrupted(tmp_path / "run", at=3)
    for folder in checkpoints.iterdir():
        (folder / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="none of the checkpoints step-00000003, step-00000002"):
        session(tmp_path / "run").run()


def test_a_damaged_start_says_how_to_go_on(tmp_path: Path) -> None:
    stage = interrupted(tmp_path, at=3).parent
    (stage / "start" / "graph.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        session(tmp_path).run()
    assert caught.value.hint == f"remove {stage} to train the stage anew"


def test_stages_of_an_unknown_recipe_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, at=3)
    (tmp_path / "run.json").unlink()
    other = RECIPE.replace("frequency=2}", "frequency=2,scope=global}")
    with pytest.raises(ArtifactError, match=r"run\.json: it is missing.*of which recipe"):
        session(tmp_path, other).run()
    assert len(list(tmp_path.glob("stages/1-one/checkpoints/*"))) == 2


def test_checkpoints_keep_two_and_hold_exactly(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "c")
    assert store.latest() is None
    for step in (1, 2, 3):
        tensors = {"a": torch.randn(3, 2), "b": torch.tensor(step, dtype=torch.uint8)}
        store.save(Checkpoint(step, tensors, {"words": ["ä", None, 0.1]}))
    assert [path.name for path in store.folders()] == ["step-00000002", "step-00000003"]
    found = store.latest()
    assert found is not None
    assert found.step == 3
    assert found.state["words"] == ["ä", None, 0.1]
    assert torch.equal(found.tensors["a"], tensors["a"])
    assert torch.equal(found.tensors["b"], tensors["b"])
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_what_differs_in_a_long_text_is_shown() -> None:
    passes = "movement-prune{sparsity=0.9,begin=10%,end=80%,update_end=80%,penalty=400.0}"
    (line,) = differences([passes], [passes.replace("400", "300")], "pipeline")
    assert line.startswith("pipeline[0]: was ...")
    assert "penalty=400.0}" in line
    assert "penalty=300.0}" in line
    (line,) = differences("a" * 100, "b" * 100, "x")
    assert line == f'x: was "{"a" * 59}..., is "{"b" * 59}...'
