"""The comparison of targets counts classes that differ, and what logits differ by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.target_agreement import main
from tests.train import tiny_run


def test_targets_are_compared_with_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    tiny_run.program().save(tmp_path / "model")
    tiny_run.tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    rows = [f"x\t{n % 2}\t\t{text}" for n, text in enumerate(tiny_run.texts(20, 3))]
    (tmp_path / "CoLA").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "CoLA" / name).write_text("\n".join(rows) + "\n")
    main(str(tmp_path / "model"), "CoLA", ["cpu"], tmp_path, 8, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["task"], found["examples"]) == ("CoLA", 20)
    reference, cpu = found["targets"]
    assert reference["largest_difference"] == 0.0 < cpu["largest_difference"] < 1e-4
    assert [row["same_class"] for row in found["targets"]] == [1.0, 1.0]
    assert reference["accuracy"] == cpu["accuracy"]
