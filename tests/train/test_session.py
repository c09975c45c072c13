"""Session: what it trains, writes and returns, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import PassError, RecipeError, TrainingError
from sparsefx.frontend.capture import capture
from sparsefx.huggingface import load_pretrained, save_pretrained
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train.data.batches import Batches, encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.evaluation import SessionData, predict
from sparsefx.train.events import Event, StageStarted, StepDone, TensorBoard
from sparsefx.train.randomness import seed_everything, stage_seed
from sparsefx.train.results import RunResult
from sparsefx.train.runfolder import RunFolder
from sparsefx.train.session import Session
from tests.train import tiny_run


def session(folder: Path, recipe: str = tiny_run.DENSE, **options: Any) -> Session:
    given = {"model": tiny_run.program(), "data": tiny_run.data(), "device": "cpu", **options}
    return Session(Recipe.parse(recipe), folder=folder, **given)


def changed(**training: Any) -> str:
    """The dense recipe with other training settings."""
    recipe = Recipe.parse(tiny_run.DENSE)
    settings = recipe.stages[0].training
    assert settings is not None
    merged = {**settings.model_dump(exclude_defaults=True), **training}
    stage = {"name": "dense", "training": {k: v for k, v in merged.items() if v is not None}}
    return json.dumps({**recipe.model_dump(mode="json", exclude_defaults=True), "stages": [stage]})


def with_pruning(options: str) -> str:
    """The dense recipe with a second stage that prunes."""
    pipeline = f'"magnitude-prune{{{options}}}"'
    return f"{tiny_run.DENSE}- {{name: sparse, pipeline: {pipeline}, training: {{steps: 2}}}}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[Event]]:
    events: list[Event] = []
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = changed(epochs=12, evaluate_every="50%", optimizer={"learning_rate": 2e-2})
    return session(folder, recipe, listeners=[events.append]).run(), events


def test_it_learns_and_scores(finished: tuple[RunResult, list[Event]]) -> None:
    result, events = finished
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 97))
    assert np.mean([event.loss for event in steps[-8:]]) < 0.4 < steps[0].loss
    score = result.stage("dense").score
    assert score is not None
    assert score.value > 0.8
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert steps[-1].learning_rate == pytest.approx(2e-2 / 86)
    assert steps[0].left == pytest.approx(95 * steps[0].seconds)
    assert 0 < steps[0].seconds < steps[1].seconds
    assert steps[-1].left == 0
    assert all(event.gradient_norm is not None for event in steps)


def test_everything_is_in_the_folder(finished: tuple[RunResult, list[Event]]) -> None:
    result, _ = finished
    names = {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*")}
    assert {
        "run.json", "recipe.yaml", "metrics.jsonl", "result.json", "captured/manifest.json",
        "stages/1-dense/result.json", "stages/1-dense/outputs.safetensors",
        "stages/1-dense/program/manifest.json",
    } <= names  # fmt: skip
    assert not any("checkpoints" in name or "start" in name for name in names)
    assert {Path(name).suffix for name in names if Path(name).name[0] != "."} <= {
        "", ".json", ".jsonl", ".yaml", ".safetensors",
    }  # fmt: skip
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 97))
    scored = [line for line in lines if "metric" in line]
    assert [line["step"] for line in scored] == [48, 96]
    assert scored[-1]["accuracy"] == result.stage("dense").score.value  # type: ignore[union-attr]  # scored


def test_the_result_is_read_back(finished: tuple[RunResult, list[Event]]) -> None:
    result, _ = finished
    assert RunResult.read(result.folder) == result
    data = tiny_run.data()
    test = encode(data.tokenizer, data.task.split("test"), 16)
    logits, labels = result.stage("dense").outputs()
    assert np.array_equal(predict(result.program, test, 64), logits)
    held = test.scored_labels()
    assert held is not None
    assert np.array_equal(held, labels)
    with pytest.raises(TrainingError, match="did you mean 'dense'"):
        result.stage("dens")


def test_a_finished_run_is_not_run_again(finished: tuple[RunResult, list[Event]]) -> None:
    result, _ = finished
    events: list[Event] = []
    recipe = (result.folder / "recipe.yaml").read_text()
    assert session(result.folder, recipe, listeners=[events.append]).run() == result
    assert not any(isinstance(event, StageStarted) for event in events)


def test_frozen_parameters_stay(finished: tuple[RunResult, list[Event]]) -> None:
    result, _ = finished
    before, after = sparsefx.Program.load(result.folder / "captured"), result.program
    for name, tensor in before.named_tensors().items():
        same = torch.equal(tensor, after.tensor(name))
        assert same == ("embeddings" in name or "position_ids" in name), name
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    recipe = changed(epochs=None, steps=6, freeze=(), schedule={"kind": "constant", "warmup": 0})
    program = session(tmp_path / "run", recipe).run().program
    ours = tiny_run.program().copy().train()
    stream = batches_like_the_session(tiny_run.data())
    named = sorted(ours.module.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    for _ in range(6):
        batch = next(stream)
        labels = batch.pop("labels").long()
        loss = F.cross_entropy(ours(**batch)["logits"], labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        ours.step()
        optimizer.zero_grad()
    for name, tensor in ours.named_tensors().items():
        torch.testing.assert_close(program.tensor(name), tensor, rtol=0, atol=1e-7)


def batches_like_the_session(data: SessionData) -> Batches:
    seed_everything(stage_seed(5, "dense"))
    return Batches(encode(data.tokenizer, data.task.split("train"), 16), 8, stage_seed(5, "dense"))


def test_bf16_and_unlabelled_texts(tmp_path: Path) -> None:
    recipe = changed(precision="bf16", data="labelled+unlabelled")
    events: list[Event] = []
    given = tiny_run.data(unlabelled=20)
    result = session(tmp_path / "run", recipe, data=given, listeners=[events.append]).run()
    assert sum(isinstance(event, StepDone) for event in events) == 20
    assert all(tensor.dtype != torch.bfloat16 for tensor in result.program.named_tensors().values())


def test_regression(tmp_path: Path) -> None:
    texts = tiny_run.texts(40, 0)
    values = tuple(len(text) / 20 for text in texts)
    halves = [Examples("drawn", texts[a::2], labels=values[a::2]) for a in (0, 1)]
    task = Task(
        "length", "regression", (), "pearson_spearman", {"train": halves[0], "test": halves[1]}
    )
    recipe = changed(epochs=30, optimizer={"learning_rate": 5e-3}, freeze=())
    result = session(
        tmp_path / "run",
        recipe,
        model=tiny_run.model(outputs=1),
        data=SessionData(task, tiny_run.tokenizer()),
    ).run()
    score = result.stage("dense").score
    assert score is not None
    assert score.value > 0.8


def test_stages_start_from_one_another(tmp_path: Path) -> None:
    recipe = """
name: three
data: {max_length: 16, batch_size: 8}
stages:
- {name: one, training: {steps: 3, precision: fp32}, evaluate: false}
- {name: two, start: model, training: {steps: 2, precision: fp32}, after: simplify}
- {name: three, start: one, evaluate: false}
"""
    result = session(tmp_path / "run", recipe).run()
    one, two, three = (stage.program() for stage in result.stages)
    assert result.program.fingerprint() == three.fingerprint() == one.fingerprint()
    assert two.fingerprint() != one.fingerprint()
    assert [stage.steps for stage in result.stages] == [3, 2, 0]
    assert [stage.score is None for stage in result.stages] == [True, False, True]
    assert two.steps == 2
    with pytest.raises(TrainingError, match="not evaluated"):
        result.stage("one").outputs()


def sparse_folder(folder: Path, **changed: int) -> Path:
    """A Hugging Face folder of another model with another head, three quarters of it zeros."""
    program = capture(tiny_run.model(3, **changed), tiny_run.example_inputs(tiny_run.data()))
    sparse = Pipeline.parse("magnitude-prune{sparsity=0.75,end=0},fold-masks").run(program)
    return save_pretrained(sparse, folder)


TRANSFER = """
name: transfer
data: {max_length: 16, batch_size: 8}
stages:
- {name: dense, training: {steps: 2}}
- {name: sparse, start: FOLDER, teacher: dense, pipeline: [pattern-lock, distill],
   training: {steps: 3}, after: [strip-distillation, fold-masks]}
"""


@pytest.mark.parametrize("as_program", [False, True])
def test_a_stage_starts_from_a_folder(as_program: bool, tmp_path: Path) -> None:
    folder = sparse_folder(tmp_path / "sparse")
    if as_program:
        network = load_pretrained(str(folder), labels=2)
        inputs = tiny_run.example_inputs(tiny_run.data())
        folder = capture(network, inputs).save(tmp_path / "program")
    model: Any = tiny_run.model()
    model.config.id2label = {0: "late", 1: "early"}
    recipe = TRANSFER.replace("FOLDER", str(folder))
    result = session(tmp_path / "run", recipe, model=model).run()
    dense, sparse = (stage.program() for stage in result.stages)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    before = load_file(tmp_path / "sparse" / "model.safetensors")[name]
    assert (before == 0).float().mean() == 0.75
    assert torch.equal(sparse.tensor(name) == 0, before == 0)
    assert not torch.equal(sparse.tensor(name), before)
    assert (dense.tensor(name) != 0).all()
    assert sparse.tensor("classifier.weight").shape == (2, 32)
    if not as_program:
        assert list(sparse.config["id2label"].values()) == ["late", "early"]


def test_tensorboard(tmp_path: Path) -> None:
    session(tmp_path / "run", listeners=[TensorBoard(tmp_path / "board")]).run()
    assert list((tmp_path / "board").glob("events.*"))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"freeze": ["."]}, "every parameter is frozen"),
        ({"schedule": {"kind": "rewind"}}, "follows a pruning pass"),
    ],
)
def test_impossible_settings_are_refused(
    training: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=why):
        session(tmp_path / "run", changed(**training)).run()


def test_the_recipe_is_checked_before_anything_runs(tmp_path: Path) -> None:
    recipe = changed().replace('"name": "dense"', '"after": ["fixpoin"], "name": "dense"')
    with pytest.raises(RecipeError, match="did you mean 'fixpoint'"):
        session(tmp_path / "run", recipe).run()
    assert not (tmp_path / "run").exists()


def test_a_folder_to_start_from_has_the_vocabulary_of_the_run(tmp_path: Path) -> None:
    recipe = TRANSFER.replace("FOLDER", str(sparse_folder(tmp_path / "other", vocab_size=20)))
    with pytest.raises(TrainingError, match="20 tokens, the model of the run one of 12") as caught:
        session(tmp_path / "run", recipe).run()
    assert str(caught.value).startswith(f"stage sparse, start at {tmp_path / 'other'}: it has a ")
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("key", ["start", "teacher"])
def test_a_named_folder_has_to_exist(key: str, tmp_path: Path) -> None:
    recipe = changed().replace('"name": "dense"', f'"{key}": "./none", "name": "dense"')
    with pytest.raises(RecipeError, match=r"no folder './none'") as caught:
        session(tmp_path / "run", recipe).run()
    assert caught.value.where == f"stages[0].{key}"


def test_another_model_is_refused(tmp_path: Path) -> None:
    session(tmp_path / "run").run()
    names = [name for name, _ in tiny_run.program().module.named_parameters()]
    (query,) = [name for name in names if name.endswith("layer.0.attention.self.query.weight")]
    for moved in (names, [query]):  # all, or one of the encoder
        with pytest.raises(TrainingError, match="not the one that this run began with"):
            session(tmp_path / "run", model=with_added(1.0, moved)).run()
    other = tiny_run.program().copy()
    other.config["num_hidden_layers"] = 9
    with pytest.raises(TrainingError, match="num_hidden_layers was 2, is 9"):
        session(tmp_path / "run", model=other).run()
    head = [name for name in names if name.startswith("classifier.")]
    session(tmp_path / "run", model=with_added(1.0, head)).run()  # which may be drawn anew


def with_added(value: float, names: list[str]) -> Program:
    program = tiny_run.program().copy()
    with torch.no_grad():
        for name in names:
            program.tensor(name).add_(value)
    return program


def test_another_recipe_or_data_is_refused(tmp_path: Path) -> None:
    session(tmp_path / "run").run()
    with pytest.raises(TrainingError, match="otherwise") as caught:
        session(tmp_path / "run", changed(optimizer={"learning_rate": 2e-3})).run()
    assert (
        "recipe.stages[0].training.optimizer.learning_rate: was 0.001, is 0.002" in caught.value.why
    )
    with pytest.raises(TrainingError, match=r"data\.train: was .60 examples"):
        session(tmp_path / "run", data=tiny_run.data(count=50)).run()
    with pytest.raises(TrainingError, match=r"data\.unlabelled: was null"):
        session(tmp_path / "run", data=tiny_run.data(unlabelled=5)).run()


def test_a_stage_that_has_not_begun_may_be_corrected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def then(sparsity: float) -> str:
        prune = (
            f"magnitude-prune{{sparsity={sparsity},end=1,include='nowhere',on_no_match='error'}}"
        )
        return f'{tiny_run.DENSE}- {{name: sparse, pipeline: "{prune}", training: {{steps: 2}}}}\n'

    with pytest.raises(PassError, match="applied nowhere"):
        session(tmp_path / "run", then(0.5)).run()
    mended = then(0.5).replace("nowhere", "encoder")
    result = session(tmp_path / "run", mended).run()
    assert [stage.name for stage in result.stages] == ["dense", "sparse"]
    assert "recipe.stages[1].pipeline[0]: was" in caplog.text
    assert "include='encoder'" in (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(TrainingError, match="otherwise"):
        session(tmp_path / "run", mended.replace("0.5", "0.6")).run()


def test_a_pattern_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    prune = "magnitude-prune{sparsity=0.8,end=1,pattern='5x7'}"
    recipe = f'{tiny_run.DENSE}- {{name: sparse, pipeline: "{prune}", training: {{steps: 2}}}}\n'
    with pytest.raises(PassError, match="blocks of 5x7 do not divide its shape 32x32"):
        session(tmp_path / "run", recipe).run()
    assert not list((tmp_path / "run" / "stages").glob("*/*"))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run", Recipe.parse(tiny_run.DENSE), tiny_run.data()),
        pytest.raises(TrainingError, match="another process works on this run"),
    ):
        session(tmp_path / "run").run()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_with_weights_that_are_no_numbers_is_refused(tmp_path: Path, value: float) -> None:
    name = "classifier.weight"
    broken = tiny_run.program().copy()
    with torch.no_grad():
        broken.tensor(name)[0, 0] = value
    with pytest.raises(TrainingError, match="NaN or infinite: classifier") as caught:
        session(tmp_path / "run", model=broken).run()
    assert caught.value.where == name
    assert not (tmp_path / "run" / "captured").exists()


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    calls = []

    def break_after_two(event: Event) -> None:
        if isinstance(event, StepDone):
            calls.append(event.step)

    run = session(
        tmp_path / "run",
        changed(optimizer={"learning_rate": 1e30}, clip=None, schedule={"kind": "constant"}),
        listeners=[break_after_two],
        checkpoint_seconds=0.0,
    )
    with pytest.raises(TrainingError, match="not finite") as caught:
        run.run()
    step = calls[-1] + 1
    assert caught.value.where == f"step {step} of 16"
    assert "the training examples" in caught.value.why
    kept = sorted((tmp_path / "run" / "stages" / "1-dense" / "checkpoints").iterdir())
    assert [path.name for path in kept][-1] == f"step-{step - 1:08d}"
