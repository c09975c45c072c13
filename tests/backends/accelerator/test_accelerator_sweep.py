"""Sweeps: resumed, on several processes, written as a table and a plot."""

from __future__ import annotations

import csv
import importlib
import json
import math
import shutil
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsefx.backends.accelerator.report.outcome import read_outcome
from sparsefx.backends.accelerator.studies import sweep
from sparsefx.backends.accelerator.studies.sweep import grid, run_sweep
from sparsefx.backends.accelerator.studies.sweep_page import write_sweep
from sparsefx.backends.accelerator.workload.bert import EncoderSize
from sparsefx.cli.app import app
from sparsefx.errors import ArtifactError, DependencyError, SparsefxError, TargetError
from tests.int8 import int8


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = EncoderSize(layers=1, hidden=128, feed_forward=256, heads=2)
    monkeypatch.setitem(sweep.SIZES, "bert-base", small)


def test_a_pattern_without_zeros_to_draw_is_told() -> None:
    arguments = ["simulate", "bert-base", "--seq", "8", "--arch", "tpu-v4-like"]
    run = CliRunner().invoke(app, [*arguments, "--pattern", "block"])
    assert "--pattern says where zeros are, and there are none" in run.stderr
    assert CliRunner().invoke(app, arguments).stderr == ""


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
    run_sweep(points, tmp_path)
    assert calls == points[2:]  # the line that was cut off spoils none after it
    assert [result.point for result in results] == points
    assert seen == [(2, 4), (3, 4), (4, 4)]
    sheet, page = write_sweep(results, tmp_path)
    assert len(sheet.read_text().splitlines()) == 5
    assert "Throughput against compression" in page.read_text()


def test_lines_that_coincide_are_told_as_one(tmp_path: Path) -> None:
    """A dense machine takes as long with whatever zeros; one in lock step does not."""
    archs = ["tpu-v4-like", "lock-step-32"]
    points = grid(archs, [1, 8], ["random", "balanced"], tokens=16)
    _, page = write_sweep(run_sweep(points, tmp_path), tmp_path)
    text = page.read_text()
    assert text.count("<polyline") - text.count('stroke="#e6e9ed"') == 3
    assert "<title>tpu-v4-like, random: 8x, " in text
    assert "\ntpu-v4-like, balanced: 8x, " in text
    assert "beside one bar: equal within 1 %" in text


def test_balanced_zeros_are_faster_than_random_ones_in_lock_step(tmp_path: Path) -> None:
    points = grid(["lock-step-32"], [8], ["random", "balanced"], tokens=16)
    random, balanced = run_sweep(points, tmp_path)
    assert balanced.cycles < random.cycles


def test_a_changed_machine_is_simulated_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    times = []
    for clock in ("1 GHz", "2 GHz"):
        file.write_text(f"base: lock-step-32\nname: mine\nclock: {clock} | assumed")
        (result,) = run_sweep(grid([str(file)], [1], ["random"], tokens=16), tmp_path)
        times.append(result.milliseconds)
    assert times[1] < times[0]


ENGINE = """
from dataclasses import dataclass
from typing import ClassVar

from own_costs import FACTOR
from sparsefx.backends.accelerator.engines.base import Engine, Timing

@dataclass(frozen=True)
class Mine(Engine):
    kind: ClassVar[str] = "mine"
    skips: ClassVar[frozenset[str]] = frozenset()
    peak: ClassVar[int] = 1
    row_step: ClassVar[int] = 1

    def run(self, gemm):
        macs = gemm.macs(self.skips)
        return Timing(macs * FACTOR // BROKEN, macs)
"""


def own_sweep(folder: Path, engine: str, factor: int = 1) -> tuple[int, str, list[float]]:
    """Sweep a machine with an engine of the user's own, as a new process would."""
    (folder / "own_engine.py").write_text(engine)
    (folder / "own_costs.py").write_text(f"FACTOR = {factor}")
    for name in ("own_engine", "own_costs"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    (folder / "mine.yaml").write_text(
        "base: lock-step-32\nname: mine\nengine: {kind: 'own_engine:Mine', numbers: {}}"
    )
    arguments = ["sweep", "--out", str(folder / "out"), "--archs", str(folder / "mine.yaml")]
    run = CliRunner().invoke(app, [*arguments, "--ratios", "4", "--seq", "16", "--jobs", "1"])
    with (folder / "out" / "sweep.csv").open() as sheet:
        cycles = [float(row["cycles"]) for row in csv.DictReader(sheet)]
    return run.exit_code, f"{run.stderr} {run.exception}", cycles


def test_an_own_engine_that_changed_is_simulated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    status, told, _ = own_sweep(tmp_path, ENGINE.replace("BROKEN", "0"))
    assert status != 0
    assert "ZeroDivisionError" in told
    assert "nothing could be simulated" in told
    mended = ENGINE.replace("BROKEN", "1")
    status, _, first = own_sweep(tmp_path, mended)
    assert status == 0
    assert own_sweep(tmp_path, mended)[2] == first
    assert own_sweep(tmp_path, mended, 10)[2][0] > 2 * first[0]  # of what it imports


def test_points_that_failed_are_run_again(tmp_path: Path) -> None:
    points = grid(["anton"], [1], ["random"], tokens=16)
    failed = sweep.Result(points[0], error="out of luck")
    (tmp_path / "points.jsonl").write_text(json.dumps(asdict(failed)) + "\n")
    (result,) = run_sweep(points, tmp_path)
    assert result.cycles > 0


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.html"])
def test_files_that_are_not_of_a_sweep_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    run = CliRunner().invoke(app, ["sweep", "--out", str(tmp_path), "--ratios", "1", "--seq", "16"])
    assert isinstance(run.exception, ArtifactError)
    assert f"would replace {name} in it" in str(run.exception)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("line", ['{"a": 1}', "[1]", '{"point": {"a": 1}}'])
def test_lines_that_are_no_results_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "points.jsonl").write_text(line + "\n")
    with pytest.raises(ArtifactError, match=r"points\.jsonl, line 1: it is no result of a sweep"):
        run_sweep(grid(["anton"], [1], ["random"], tokens=16), tmp_path)


def test_a_pattern_machine_needs_its_pattern(tmp_path: Path) -> None:
    points = grid(["a100-2-4"], [2], ["random", "balanced", "block", "n-of-m"], tokens=16)
    random, balanced, block, pairs = run_sweep(points, tmp_path)
    assert pairs.millijoules < min(random.millijoules, balanced.millijoules, block.millijoules)


def test_a_ratio_that_no_pattern_has_is_told() -> None:
    sweep = ["sweep", "--out", "x", "--patterns", "random,n-of-m", "--ratios", "2,3.3"]
    for command in (sweep, ["simulate", "bert-base", "--pattern", "n-of-m", "--ratio", "3.3"]):
        error = CliRunner().invoke(app, command).exception
        assert isinstance(error, TargetError)
        assert "n-of-m keeps 2 of every 2 x ratio weights, and 6.6 are no number" in str(error)
        assert "the nearest are 3 and 3.5" in str(error)
    with pytest.raises(TargetError, match=r"the nearest are 1 and 1\.5"):
        grid(["anton"], [1.25], ["n-of-m"])
    for none in (0.5, math.inf, math.nan):
        with pytest.raises(TargetError, match="between 1"):
            grid(["anton"], [none], ["n-of-m"])
    assert len(grid(["anton"], [1, 1.5, 3.5], ["n-of-m"])) == 3


def test_an_unknown_pattern_is_told() -> None:
    for command in (
        ["sweep", "--out", "x", "--patterns", "blok"],
        ["simulate", "bert-base", "--pattern", "blok"],
    ):
        error = CliRunner().invoke(app, command).exception
        assert isinstance(error, SparsefxError)
        assert "there is no pattern 'blok'" in str(error)
        assert "did you mean 'block'?" in str(error)


def test_a_point_that_cannot_run_says_why(tmp_path: Path) -> None:
    (result,) = run_sweep(grid(["anton"], [1], ["random"], size="bert-huge"), tmp_path)
    assert "no size 'bert-huge'" in result.error
    assert json.loads((tmp_path / "points.jsonl").read_text())["error"]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_asked_for_only_when_wanted(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"pip install 'sparsefx\[ray\]'"):
        run_sweep(grid(["anton"], [1], ["random"]), tmp_path, ray_address="local")


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'sparsefx[ray]'")
def test_a_local_ray_gives_the_same_results(tmp_path: Path) -> None:
    points = grid(["anton"], [16], ["random", "balanced"], size="bert-large", tokens=1)
    here = run_sweep(points, tmp_path / "here")
    assert run_sweep(points, tmp_path / "ray", ray_address="local") == here


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


def test_files_of_a_comparison_say_whose_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["simulate", "bert-base", "--seq", "16", "--compare", "anton", "a100-fp16"]
    run = CliRunner().invoke(app, [*arguments, "--html", str(page), "--no-sensitivity"])
    assert run.exit_code == 0, run.output
    assert "what follows, and files, are of anton, named first; the page has" in run.output
    text = page.read_text(encoding="utf-8")
    assert "<h2>Side by side</h2>" in text
    head = "<tr><th></th><th>anton</th><th>a100-fp16</th><th>second / first</th></tr>"
    assert text.count(head) == 2
    assert "All that follows is of anton alone." in text


def simulate_to(path: Path, arch: str) -> None:
    arguments = ["simulate", "bert-base", "--seq", "16", "--arch", arch, "--json", str(path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_saved_results_are_compared_with_each_other_and_with_a_machine(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    simulate_to(first, "anton")
    simulate_to(second, "lock-step-32")
    run = CliRunner().invoke(app, ["simulate", "--compare", str(first), str(second)])
    assert run.exit_code == 0, run.output
    assert "second / first" in run.output
    assert "where they differ most" in run.output
    mixed = ["simulate", "bert-base", "--seq", "16", "--compare", "anton", str(second)]
    again = CliRunner().invoke(app, mixed)
    assert again.exit_code == 0, again.output
    assert again.output.splitlines()[1:4] == [
        line.replace("first", "anton") for line in run.output.splitlines()[1:4]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model is named"),
        (["--compare", "anton", "a.json"], "no model is named"),
        (["--compare", "a.json", "b.json"], "there is no such file"),
        (["bert-base", "--arch", "antn"], "did you mean 'anton'"),
        (["nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(app, ["simulate", *arguments])
    assert isinstance(run.exception, SparsefxError)
    assert message in str(run.exception)


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"cycles": 3}')
    with pytest.raises(TargetError, match="this is no saved simulation"):
        read_outcome(file)


def test_saved_programs_are_swept_with_their_own_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("dense", "sparse")]
    for folder, zeros in zip(folders, (0.0, 0.9), strict=True):
        int8(zeros=zeros).save(folder)
    out = tmp_path / "out"
    arguments = ["sweep", *map(str, folders), "--out", str(out), "--seq", "16", "--jobs", "1"]
    arguments += ["--archs", "lock-step-32,a100-2-4"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    rows = [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == [""] * 4
    assert [row["point"]["ratio"] for row in rows] == pytest.approx([1, 1, 10, 10], rel=0.05)
    assert rows[2]["cycles"] < rows[0]["cycles"]
    assert "Throughput of the saved Programs" in (out / "sweep.html").read_text()
    calls: list[sweep.Point] = []
    monkeypatch.setattr(sweep, "run_point", calls.append)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert calls == []


def test_sweep_command(tmp_path: Path) -> None:
    arguments = ["sweep", "--out", str(tmp_path), "--ratios", "1,4", "--seq", "16", "--jobs", "1"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert (tmp_path / "sweep.html").exists()
    assert run.output.split().count("bert-base") == 4
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
