"""Sweeps: resumed, on several processes, written as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsefx.backends.accelerator import sweep
from sparsefx.backends.accelerator.bert import EncoderSize
from sparsefx.backends.accelerator.sweep import grid, run_sweep, write_sweep
from sparsefx.cli.app import app
from sparsefx.errors import TargetError


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = EncoderSize(layers=1, hidden=128, feed_forward=256, heads=2)
    monkeypatch.setitem(sweep.SIZES, "bert-base", small)


def test_a_stopped_sweep_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = grid(["anton", "lock-step-32"], [1, 4], ["random"], tokens=16)
    run_sweep(points[:2], tmp_path)
    file = tmp_path / "points.jsonl"
    file.write_text(file.read_text() + '{"cut off')
    calls = []
    real = sweep.run_point

    def counted(point: sweep.Point) -> sweep.Result:
        calls.append(point)
        return real(point)

    monkeypatch.setattr(sweep, "run_point", counted)
    seen: list[tuple[int, int]] = []
    results = run_sweep(points, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert calls == points[2:]
    assert [result.point for result in results] == points
    assert seen == [(2, 4), (3, 4), (4, 4)]
    sheet, page = write_sweep(results, tmp_path)
    assert len(sheet.read_text().splitlines()) == 5
    assert "Throughput against compression" in page.read_text()


def test_balanced_zeros_are_faster_than_random_ones_in_lock_step(tmp_path: Path) -> None:
    points = grid(["lock-step-32"], [8], ["random", "balanced"], tokens=16)
    random, balanced = run_sweep(points, tmp_path)
    assert balanced.cycles < random.cycles


def test_a_point_that_cannot_run_says_why(tmp_path: Path) -> None:
    (result,) = run_sweep(grid(["anton"], [1], ["random"], size="bert-huge"), tmp_path)
    assert "no size 'bert-huge'" in result.error
    assert json.loads((tmp_path / "points.jsonl").read_text())["error"]


def test_ray_is_asked_for_only_when_wanted(tmp_path: Path) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(TargetError, match=r"pip install 'sparsefx\[ray\]'"):
            run_sweep(grid(["anton"], [1], ["random"]), tmp_path, ray_address="local")


def test_simulate_command_writes_every_report(tmp_path: Path) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("html", "trace", "csv", "json")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    run = CliRunner().invoke(
        app, ["simulate", "bert-base", "--seq", "16", "--ratio", "4", *options]
    )
    assert run.exit_code == 0, run.output
    assert all(path.stat().st_size for path in files.values())


def test_compare_shows_both_machines() -> None:
    arguments = ["simulate", "bert-base", "--seq", "16", "--compare", "anton", "a100-fp16"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "a100-fp16" in run.output


def test_sweep_command(tmp_path: Path) -> None:
    arguments = ["sweep", "--out", str(tmp_path), "--ratios", "1,4", "--seq", "16", "--jobs", "1"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert (tmp_path / "sweep.html").exists()
    assert CliRunner().invoke(app, [*arguments, "--patterns", "odd"]).exit_code != 0


def test_mappings_and_one_layer_are_told() -> None:
    small = ["simulate", "bert-base", "--seq", "16", "--arch", "lock-step-32"]
    run = CliRunner().invoke(app, [*small, "--mappings", "--layer", "layer0.q"])
    assert run.exit_code == 0, run.output
    assert "%layer0.q: [16, 128] by [128, 128]" in run.output
    assert "KiB" in run.output
    assert "cycles of fill and drain" in run.output
    unknown = CliRunner().invoke(app, [*small, "--layer", "layer0.p"])
    assert isinstance(unknown.exception, TargetError)
