"""The GLUE benchmark keeps every evaluation of a run."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import pytest

from benchmarks import glue
from benchmarks.glue import curve, finished, main, unpack
from benchmarks.glue_table import RESULTS
from benchmarks.variants import with_sparsity
from sparsefx.cli import one_message
from sparsefx.errors import DataError
from sparsefx.recipe import Recipe

RECIPES = RESULTS.parents[1] / "recipes"


def test_the_curve_has_the_score_and_the_loss_up_to_each_evaluation(tmp_path: Path) -> None:
    lines = [
        {"stage": "general", "step": 1, "loss": 50.0},  # of another kind, and not evaluated
        {"stage": "dense", "step": 0, "value": 0.3},  # before any step: there is no loss
        {"stage": "dense", "step": 1, "loss": 2.0},
        {"stage": "dense", "step": 2, "loss": 1.0},
        {"stage": "dense", "step": 2, "value": 0.6, "count": 40},
        {"stage": "sparse", "step": 1, "loss": 4.0},
        {"stage": "sparse", "step": 1, "value": 0.5},
        {"stage": "sparse", "step": 2, "loss": 9.0},  # cut off before its evaluation
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert curve(tmp_path) == [
        {"stage": "dense", "step": 0, "value": 0.3, "loss": None},
        {"stage": "dense", "step": 2, "value": 0.6, "loss": 1.5},
        {"stage": "sparse", "step": 1, "value": 0.5, "loss": 4.0},
    ]


def test_results_with_other_unlabelled_texts_are_not_taken_for_this_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert not finished(path, 0)
    for transfer, had in (({"texts": 8000, "from": ["QQP"]}, 8000), (None, 0)):
        path.write_text(json.dumps({"transfer": transfer}))
        assert finished(path, had)
        with pytest.raises(DataError, match=f"had --transfer {had}, this one has --transfer 40"):
            finished(path, 40)


def recipe_of(name: str) -> Recipe:
    """The recipe that results are of: of the benchmarks, a shipped one, or at another sparsity."""
    if (own := RECIPES / f"{name}.yaml").exists():
        return Recipe.load(own)
    method, _, percent = name.rpartition("-")
    if method and percent.isdigit() and name not in Recipe.names():
        return with_sparsity(Recipe.shipped(method), int(percent) / 100)
    return Recipe.shipped(name)


@pytest.mark.parametrize(
    "path",
    sorted([*RESULTS.glob("*.json"), *RESULTS.with_name("dense_sweep").glob("*.json")]),
    ids=lambda path: path.stem,
)
def test_the_committed_results_are_found_again(path: Path) -> None:
    run = json.loads(path.read_text(encoding="utf-8"))
    name = run["recipe"]["name"]
    shipped = recipe_of(name)
    rest = f"-{run['model']}-{run['task']}-{run['seed']}"
    assert path.stem.endswith(rest)
    assert path.stem.removesuffix(rest).partition("-at-")[0] == name  # at the budget of another
    texts = (run["transfer"] or {"texts": 0})["texts"]
    assert texts == (0 if path.parent.name == "dense_sweep" else 8000)
    assert finished(path, texts, None if "-at-" in path.stem else shipped)
    changed = shipped.model_copy(update={"data": shipped.data.model_copy(update={"batch_size": 3})})
    with pytest.raises(DataError, match=r"recipe.data.batch_size: was 32, is 3"):
        finished(path, texts, changed)


def test_without_files_the_datasets_are_loaded_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "ARCHIVE", tmp_path / "glue.tar.xz")
    monkeypatch.setattr(glue, "cache_folder", lambda: tmp_path)
    assert glue.glue_folder(None) is None
    assert glue.glue_folder(tmp_path) == tmp_path


def test_a_mistake_ends_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, told in (
        ({"seeds": "a"}, "'a' are no whole numbers"),
        ({"tasks": "RTX"}, "did you mean 'RTE'?"),
    ):
        given = {"tasks": "RTE", "seeds": "0", "data": tmp_path, "transfer": 0, **options}
        rest = {"model": "m", "budget_of": None, "sparsity": None}
        with pytest.raises(SystemExit) as ended, one_message():
            main("fine-tune", work=tmp_path, out=tmp_path, **given, **rest)  # type: ignore[arg-type]
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


def test_all_tasks_are_known_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "RTE").mkdir()
    for name in ("train", "dev"):
        rows = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tc\tnot_entailment\n"
        (tmp_path / "RTE" / f"{name}.tsv").write_text(rows)
    monkeypatch.setattr(glue, "run_one", lambda *_: pytest.fail("it began to train"))
    given = {"budget_of": None, "sparsity": None, "work": tmp_path, "out": tmp_path}
    with pytest.raises(DataError, match="'RTX' is not a GLUE task"):
        main("fine-tune", tasks="RTE,RTX", data=tmp_path, model="m", transfer=0, **given)  # type: ignore[arg-type]


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "MRPC" / "train.tsv"
    source.parent.mkdir()
    source.write_bytes(random.Random(0).randbytes(200_000))
    archive, cut = tmp_path / "glue.tar.xz", tmp_path / "cut.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        file.add(source, "MRPC/train.tsv")
    cut.write_bytes(archive.read_bytes()[:100_000])
    cache = tmp_path / "cache"
    with pytest.raises((EOFError, tarfile.ReadError)):
        unpack(cut, cache / "glue")
    assert not list(cache.iterdir())
    for _ in range(2):  # the second time as if another process had been faster
        unpack(archive, cache / "glue")
        assert (cache / "glue/MRPC/train.tsv").read_bytes() == source.read_bytes()
    assert [path.name for path in cache.iterdir()] == ["glue"]
