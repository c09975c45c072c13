"""The GLUE table is computed from the files of the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.glue_table import Key, cell, load, table
from sparsefx.errors import DataError


def write_run(
    folder: Path,
    recipe: str,
    task: str,
    seed: int,
    scores: dict[str, tuple[float, float]],
    epochs: int = 3,
) -> None:
    """A run whose stages have these accuracies and F1."""
    stages = {
        name: {
            "score": {"value": (a + f) / 2, "parts": {"accuracy": a, "f1": f}},
            "encoder_zeros": 0.0 if name == "dense" else 0.9,
            "paper_ratio": 10.0,
            "stored_ratio": 1.7,
        }
        for name, (a, f) in scores.items()
    }
    settings = {"name": recipe, "seed": seed, "epochs": epochs}
    run = {"recipe": settings, "task": task, "seed": seed, "model": "m", "stages": stages}
    (folder / f"{recipe}-{task}-{seed}-{epochs}.json").write_text(json.dumps(run))


def rows(folder: Path, dense: str | None = None) -> dict[tuple[str, str], list[str]]:
    """The cells of each row, by recipe and stage."""
    lines = table(load(folder), dense).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(each[1], each[2]): each[3:] for each in cells}


def test_mean_interval_and_parts(tmp_path: Path) -> None:
    write_run(tmp_path, "r", "MRPC", 0, {"dense": (0.80, 0.90)})
    write_run(tmp_path, "r", "MRPC", 1, {"dense": (0.82, 0.92)})
    ((key, entries),) = load(tmp_path).items()
    assert key == Key("m", "r", "dense", key.settings)
    assert cell(entries) == "86.0 ±12.7 (81.0/91.0)"  # t of one degree of freedom: 12.706
    assert cell([]) == ""


def test_differences_are_paired_by_task_and_seed(tmp_path: Path) -> None:
    for seed, high in ((0, 0.9), (1, 0.7)):
        for task in ("QNLI", "MRPC", "RTE", "CoLA"):
            scores = {"dense": (high, high), "sparse": (high - 0.01, high - 0.01)}
            write_run(tmp_path, "a", task, seed, scores)
        write_run(tmp_path, "fine-tune", "RTE", seed, {"dense": (high + 0.02, high + 0.02)})
        write_run(tmp_path, "b", "RTE", seed, {"student": (high, high)})
    found = rows(tmp_path)
    # seeds, the four tasks, their average, to dense, zeros, paper, stored
    assert found["a", "sparse"][0] == "2"
    assert found["a", "sparse"][5:] == ["79.0 ±127.1", "-1.0 ±0.0", "90%", "10.0x", "1.7x"]
    assert found["b", "student"][5:7] == ["", "-2.0 ±0.0"]
    assert found["a", "dense"][6] == ""
    assert rows(tmp_path, "fine-tune")["a", "sparse"][6] == "-3.0 ±0.0"


def test_other_settings_are_other_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "r", "RTE", 0, {"dense": (0.6, 0.6)})
    write_run(tmp_path, "r", "RTE", 1, {"dense": (0.8, 0.8)}, epochs=9)
    names = [key for key, _ in rows(tmp_path)]
    assert len(names) == 2
    assert all(name.startswith("r [") for name in names)


def test_a_folder_without_runs_is_no_empty_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "none")
