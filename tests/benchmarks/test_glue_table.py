"""The GLUE table is computed from the files of the runs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.glue_table import cell, load


def write_run(folder: Path, seed: int, accuracy: float, f1: float) -> None:
    score = {"value": (accuracy + f1) / 2, "parts": {"accuracy": accuracy, "f1": f1}}
    stage = {"score": score, "difference": None, "encoder_zeros": 0.0}
    run = {
        "recipe": {"name": "r"},
        "task": "MRPC",
        "seed": seed,
        "model": "m",
        "stages": {"dense": stage},
    }
    (folder / f"{seed}.json").write_text(json.dumps(run))


def test_mean_spread_and_parts(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.80, 0.90)
    write_run(tmp_path, 1, 0.82, 0.88)
    rows = load(tmp_path)[("m", "r", "dense")]
    assert cell(rows) == "85.0 ±0.0 (81.0/89.0)"
    assert cell([]) == ""
