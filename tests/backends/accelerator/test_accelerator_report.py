"""What a simulated run tells: page, trace, tables, reasons, sensitivity."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.architecture import perturbed, quantities
from sparsefx.backends.accelerator.report.figures import compression_curve, energy_stack
from sparsefx.backends.accelerator.report.outcome import Outcome, comparison
from sparsefx.backends.accelerator.report.page import write_page
from sparsefx.backends.accelerator.report.reasons import against_dense, reasons
from sparsefx.backends.accelerator.report.tables import as_csv, as_tree
from sparsefx.backends.accelerator.report.trace import trace_events, write_trace
from sparsefx.backends.accelerator.simulation.tile_level import Simulation, simulate
from sparsefx.backends.accelerator.studies.sensitivity import Swing, sensitivity
from sparsefx.backends.accelerator.workload.bert import (
    EncoderSize,
    Zeros,
    balanced_mask,
    encoder_workload,
)
from sparsefx.backends.accelerator.workload.operations import MatmulOp, Workload
from tests.accelerated import compiled


def test_page_trace_and_tables(tmp_path: Path) -> None:
    machine = compiled()
    page = machine.save(tmp_path / "report.html", sensitivity=True).read_text()
    assert "<th>20 % less</th>" in page
    for part in (
        "Why it is not faster", "Where the cycles go", "Who works when", "Roofline", "Balance",
        "Energy", "What the assumptions are worth",
    ):  # fmt: skip
        assert f"<h2>{part}</h2>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    run = machine.simulation
    trace = json.loads(write_trace(run, tmp_path / "trace.json").read_text())
    assert len(trace["traceEvents"]) == len(trace_events(run))
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X"}
    swings = sensitivity(run)[:2]
    tree = json.loads(json.dumps(as_tree(run, swings)))
    assert [row["number"] for row in tree["sensitivity"]] == [swing.path for swing in swings]
    assert sum(tree["waterfall"].values()) == pytest.approx(tree["cycles"])
    assert len(as_csv(run).splitlines()) == 1 + len(run.ops)


def test_tiles_and_captions_are_not_cut(tmp_path: Path) -> None:
    workload = encoder_workload(EncoderSize(1, 64, 256, 2), batch=8, tokens=64, ratio=4)
    run = simulate(workload, load_architecture("lock-step-32"))
    assert any(re.search(r", about \d+,\d{3} cycles", op.mapping) for op in run.ops)
    page = write_page(run, tmp_path / "page.html", None).read_text()
    assert re.search(r">\d+ x \d+ x \d+<", page)
    lines = re.findall(r"<text[^>]*>([^<]*(?:times the mean|more work)[^<]*)<", page)
    assert lines
    assert all(len(line) < 75 for line in lines), lines


@pytest.mark.parametrize(("ratio", "told"), [(4, "this run"), (32, "this run"), (64, "64x")])
def test_this_run_is_named_inside_the_figure(ratio: float, told: str) -> None:
    workload = encoder_workload(EncoderSize(1, 64, 256, 2), batch=1, tokens=16, ratio=ratio)
    figure = compression_curve(simulate(workload, load_architecture("anton")))
    found = re.search(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"[^>]*>this run', figure)
    assert found
    place, height, anchor = float(found[1]), float(found[2]), found[3]
    assert (60 < place < 780) if anchor == "start" else (140 < place < 880)
    assert height < 310
    assert told in figure


def test_a_small_run_keeps_its_digits() -> None:
    run = simulate(Workload("w", (MatmulOp("a", 1, 8, 8, ("",)),), 1, 1), load_architecture("scnn"))
    outcome = Outcome.of(run)
    shown = {name: text(values[0]) for name, values, text in comparison([outcome])}
    for name in ("ms", "ms, roofline bound", "external traffic, MB", "energy, mJ"):
        assert float(shown[name]) > 0, (name, shown[name])
    assert float(shown["ms"]) == pytest.approx(run.seconds * 1e3, rel=0.01)
    assert " 0 uJ" not in energy_stack(run).replace(">", " ")


def test_remedies_of_imbalance_are_those_that_help() -> None:
    rng = np.random.default_rng(0)
    uneven = rng.random((512, 512)) < 0.1
    even = balanced_mask(512, 512, 8, rng)

    def told(op: MatmulOp, preset: str = "lock-step-32") -> str:
        return " ".join(text for text in reasons(_run((op,), preset)) if "imbalance" in text)

    text = told(MatmulOp("pruned", 16, 512, 512, ("",), mask=uneven))
    assert "balance-banks or permute-rows evens them out; %pruned with even rows" in text
    assert "tokens" not in text
    text = told(MatmulOp("even", 16, 500, 512, ("",), mask=even[:500]))
    assert "balance-banks" not in text
    assert "tokens" not in text
    text = told(MatmulOp("short", 1, 512, 512, ("",)), "tensor-core-int8")
    assert "with four times as many %short would take 26% of its cycles" in text
    text = told(MatmulOp("scores", 16, 16, 64, ("",), copies=4, stationary=False))
    assert "%scores is too small for the array: longer sequences fill it." in text
    dead = MatmulOp("dead", 8, 64, 64, ("",), mask=np.zeros((64, 64), bool))
    text = told(dead, "tensor-core-int8")  # runs it dense
    assert "the most in %dead" in text
    assert "even rows" not in text


def _run(ops: tuple[MatmulOp, ...], preset: str) -> Simulation:
    return simulate(Workload("w", ops, 1, 16), load_architecture(preset))


def test_changes_that_no_machine_has_are_called_impossible(tmp_path: Path) -> None:
    run = _run((MatmulOp("a", 8, 32, 32, ("",)),), "scnn")
    swing = Swing("engine.numbers.tile_n", run.architecture.clock, math.nan, -0.124)
    assert swing.size == 0.124
    page = write_page(run, tmp_path / "page.html", (swing,)).read_text(encoding="utf-8")
    assert '<td class="whole">impossible</td><td class="whole">-12.4%</td>' in page
    assert page.count("impossible") == 2
    assert "nan%" not in page


def test_changes_that_no_machine_has_are_null_in_json() -> None:
    run = _run((MatmulOp("a", 8, 32, 32, ("",)),), "scnn")
    swing = Swing("sram.0.capacity", run.architecture.clock, math.nan, 0.1)
    (row,) = json.loads(json.dumps(as_tree(run, (swing,)), allow_nan=False))["sensitivity"]
    assert row["20 % less"] is None
    assert row["20 % more"] == 0.1


def test_a_page_that_is_saved_says_how_to_get_the_sensitivity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("sparsefx.backends.accelerator.target.sensitivity_of")
    page = compiled().save(tmp_path / "report.html").read_text()
    assert "save(path, sensitivity=True)" in page
    assert "<th>20 % less</th>" not in page


def test_numbers_that_nothing_reads_are_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = compiled()
    linears = tuple(op for op in machine.workload.ops if isinstance(op, MatmulOp))[:2]
    base = simulate(type(machine.workload)("two", linears, 2, 16), machine.architecture)
    known = {path for path, _ in quantities(machine.architecture)}
    unread = [path for path in known if path.startswith(("host.", "vector.costs."))]
    assert unread
    for path in unread:
        for factor in (0.8, 1.2):
            moved = simulate(base.workload, perturbed(machine.architecture, path, factor))
            assert moved.seconds == base.seconds
    asked: list[str] = []

    def change(base: Simulation, path: str, factor: float) -> float:
        asked.append(path)
        return 0.0

    monkeypatch.setattr("sparsefx.backends.accelerator.studies.sensitivity._change", change)
    swings = sensitivity(base)
    assert not set(asked) & set(unread)
    assert {s.path for s in swings} & set(unread)
    sensitivity(machine.simulation)
    assert {"vector.costs.softmax", "vector.costs.tanh"} <= set(asked)


def test_reasons_name_what_takes_the_time() -> None:
    run = compiled("lock-step-32").simulation
    told = reasons(run)
    shares = {cause: cycles / run.cycles for cause, cycles in run.waterfall.items()}
    largest = max(shares, key=lambda cause: shares[cause])
    assert told[0].startswith(f"{shares[largest]:.0%} {largest}: ")
    assert any("balance-banks or permute-rows" in text for text in told)
    dense = simulate(encoder_workload(EncoderSize(1, 64, 128, 2), tokens=16), run.architecture)
    assert against_dense(dense) == "There are no zeros to skip."
    rigid = compiled("tensor-core-2-4").simulation
    unused = "12 products have zeros in no pattern that this engine skips (2:4), and run dense, as "
    assert against_dense(rigid).startswith(f"{unused}bert.encoder.layer.0.attention.self.query")
    assert against_dense(rigid).endswith("magnitude-prune{pattern='2:4',sparsity=0.5} makes one.")
    assert "no zeros" in against_dense(compiled("scalesim-compat").simulation)
    executed = sum(op.macs.executed for op in run.ops if op.macs)
    fewer = f"{run.workload.dense_macs / executed:.2f} times fewer"
    assert fewer in against_dense(run)


def test_a_run_that_is_bound_by_its_multipliers_is_told_so() -> None:
    size = EncoderSize(1, 64, 128, 2)

    def told(arch: str, ratio: float = 1.0) -> str:
        fast = {"sram.0.bandwidth": 1e6, "dram.bandwidth": 1e6, "vector.throughput": 1e6}
        machine = load_architecture(arch)
        known = dict(quantities(machine))
        for path, factor in fast.items():
            machine = perturbed(machine, path, factor) if path in known else machine
        run = simulate(encoder_workload(size, batch=8, tokens=64, ratio=ratio), machine)
        return next(iter(reasons(run)))

    assert "% ideal: the array works at its peak, on " in told("lock-step-32")
    assert told("lock-step-32").endswith("no weight is zero: magnitude-prune leaves fewer.")
    assert told("lock-step-32", 2).endswith("; more zeros leave fewer.")
    assert "; this engine skips no zeros" in told("tensor-core-int8")


@pytest.mark.parametrize(("arch", "pattern", "unused"), [
    ("a100-fp16", "random", "zeros: this engine skips no zeros, and the weights have some."),
    ("a100-2-4", "random", "zeros: 6 products have zeros in no pattern that this engine skips (2:"),
    ("a100-2-4", "n-of-m", ""),
    ("dstc", "random", ""),
])  # fmt: skip
def test_zeros_that_save_nothing_are_told_of_where_launches_take_the_time(
    arch: str, pattern: Zeros, unused: str
) -> None:
    size = EncoderSize(1, 64, 128, 2)
    for ratio in (2.0, 1.0):
        workload = encoder_workload(size, tokens=16, ratio=ratio, zeros=pattern)
        told = reasons(simulate(workload, load_architecture(arch)))
        assert "launch and host" in told[0]
        zeros = [text for text in told if text.startswith("zeros: ")]
        assert len(zeros) == bool(unused and ratio > 1)
        assert all(text.startswith(unused) for text in zeros)


def test_sensitivity_orders_the_assumptions() -> None:
    machine = compiled()
    linears = tuple(op for op in machine.workload.ops if isinstance(op, MatmulOp))[:2]
    small = type(machine.workload)("two", linears, 2, 16)
    swings = sensitivity(simulate(small, machine.architecture))
    sizes = [swing.size for swing in swings]
    assert sizes == sorted(sizes, reverse=True)
    unsure = [
        (path, quantity.status)
        for path, quantity in quantities(machine.architecture)
        if quantity.status in ("assumed", "suspect", "fitted") and path != "value_bits"
        if not quantity == quantity.scaled(0.8) == quantity.scaled(1.2)
    ]
    assert sorted(swing.path for swing in swings) == sorted(path for path, _ in unsure)
    by_path = {swing.path: swing for swing in swings}
    base = simulate(small, machine.architecture)
    for path in ("clock", "dram.bandwidth", "vector.launch"):
        for factor, told in ((0.8, by_path[path].less), (1.2, by_path[path].more)):
            moved = simulate(small, perturbed(machine.architecture, path, factor))
            assert told == pytest.approx(moved.seconds / base.seconds - 1)
    energy = by_path["energy.operand_registers"]
    less = simulate(small, perturbed(machine.architecture, energy.path, 0.8))
    change = sum(less.energy.values()) / sum(base.energy.values()) - 1
    assert energy.measure == "energy"
    assert energy.less == pytest.approx(change)
    clock = next(swing for swing in swings if swing.path == "engine.numbers.elements")
    assert clock.less != 0
