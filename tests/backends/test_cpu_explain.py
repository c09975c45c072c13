from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefx.backends.cpu.lowering.costs import choose_format, tuned
from sparsefx.backends.cpu.machine.isa import ISAS, IsaName
from sparsefx.backends.cpu.measure import rates
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.cli import main
from sparsefx.errors import TargetError
from tests.backends.cpu_cases import RUNNABLE, quantized, sparse_
from tests.int8 import int8
from tests.programs import captured
from tests.tiny_models import example_batch


def weight(density: float, rows: int, columns: int, dtype: Any) -> Any:
    rng = np.random.default_rng(0)
    return (rng.random((rows, columns)) < density).astype(dtype)


@pytest.mark.parametrize(("isa", "dtype"), [("avx512_vnni", np.int8), ("avx2", np.float32)])
@pytest.mark.parametrize("rows", [2, 60, 61])
def test_the_break_even_is_where_the_choice_changes(isa: IsaName, dtype: Any, rows: int) -> None:
    found = choose_format(weight(1.0, rows, 768, dtype), ISAS[isa]).break_even
    less = choose_format(weight(found - 0.05, rows, 768, dtype), ISAS[isa])
    assert less.format in ("quads", "rows", "blocks")
    assert "cheaper than visiting every weight" in less.reason
    if found < 0.95:
        more = choose_format(weight(found + 0.05, rows, 768, dtype), ISAS[isa])
        assert more.format.startswith("dense")
        assert "zeros do not pay" in more.reason


def test_rows_with_one_weight_fill_no_dot_product() -> None:
    matrix = np.zeros((60, 4), np.int8)
    matrix[:, 0] = 1
    choice = choose_format(matrix, ISAS["avx512_vnni"])
    assert choice.format == "dense_i8"
    assert "too few non-zeros" in choice.reason


@pytest.mark.parametrize("isa", RUNNABLE)
def test_costs_follow_the_tokens(isa: IsaName) -> None:
    program = quantized(sparse_(captured("bert-cls"), 0.1), example_batch())
    compiled = CpuTarget(isa=isa, rates="built-in").lower(program)
    one, two = compiled.explain(1, 64), compiled.explain(2, 64)
    per_token = [i for i, layer in enumerate(one.layers) if layer.layer.rows > 64]
    assert per_token
    for number in per_token:
        assert two.layers[number].chosen == 2 * one.layers[number].chosen
    # The classifier has one row for each sequence: two of them are one panel still.
    assert two.layers[-1].chosen == one.layers[-1].chosen
    # On tiles every weight is multiplied, and only bytes are saved.
    assert one.gain > (1 if ISAS[isa].has_tiles else 2)
    assert "zeros do not pay in 0" in str(one)


def test_a_format_that_was_asked_for_says_what_it_costs() -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    explained = str(
        CpuTarget(isa=RUNNABLE[0], format="dense_f32", rates="built-in").lower(program).explain()
    )
    assert "-> dense_f32" in explained
    assert "asked for; rows would be" in explained


@pytest.mark.parametrize(
    ("format", "integers", "why"),
    [
        ("quads", False, "it is for int8 weights, and theirs are fp32"),
        ("rows_fp16", False, "it takes precision='fp16'"),
        ("dense_amx", True, "avx512_vnni has no tiles"),
        ("rows", True, "it is for fp32 weights, and theirs are int8"),
    ],
)
@pytest.mark.skipif("avx512_vnni" not in RUNNABLE, reason="this machine has no vpdpbusd")
def test_a_format_that_no_linear_can_have_is_refused(format: str, integers: bool, why: str) -> None:
    program = captured("bert-cls")
    if integers:
        program = quantized(program, example_batch())
    with pytest.raises(TargetError) as caught:
        CpuTarget(isa="avx512_vnni", format=format, rates="built-in").lower(program)
    assert str(caught.value).startswith(f"cpu{{format={format!r}}}: no linear can have it: {why}")
    possible = "quads, dense_i8, blocks" if integers else "rows, dense_f32"
    assert caught.value.hint == f"formats that are possible here: {possible}"


@pytest.mark.skipif("avx512_vnni" not in RUNNABLE, reason="this machine has no vpdpbusd")
def test_a_format_that_some_linears_cannot_have_is_told(caplog: pytest.LogCaptureFixture) -> None:
    program = int8(options="{exclude='query'}")
    target = CpuTarget(isa="avx512_vnni", format="quads", rates="built-in")
    said = r"\d+ of \d+ linears can have format='quads'; for the others it is for int8 weights"
    assert re.search(said, str(target.lower(program).explain()))
    assert re.search(said, caplog.text)


def test_rates_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "kept")
    isa = ISAS[RUNNABLE[0]]
    found = rates.measure(isa)
    assert min(found.nonzero, found.channel, found.peak, found.peak_f32) > 0
    assert (found.quad > 0) == isa.has_dot
    found = replace(rates.BUILT_IN, quad=2.6, origin="measured")
    monkeypatch.setattr(rates, "measure", lambda _: found)
    rates.measured_rates.cache_clear()
    assert rates.measured_rates(isa) == found
    monkeypatch.delattr(rates, "measure")
    rates.measured_rates.cache_clear()
    assert rates.measured_rates(isa) == found
    rates.measured_rates.cache_clear()


def test_disturbed_rates_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "kept")
    plain = rates.BUILT_IN
    # A slower core is plausible, one format that is slower alone is not.
    twice = replace(plain, quad=2 * plain.quad, group=2 * plain.group)
    assert rates.spread(replace(twice, block=0.0, nonzero=0.0, channel=0.0)) == 1
    assert rates.spread(replace(plain, group=2.5 * plain.group)) == pytest.approx(2.5)
    isa, disturbed = ISAS["avx2"], replace(plain, channel=9 * plain.channel)
    sequence = [disturbed, replace(plain, origin="measured")]
    monkeypatch.setattr(rates, "measure", lambda _: sequence.pop(0))
    rates.measured_rates.cache_clear()
    assert rates.measured_rates(isa).origin == "measured"
    rates.measured_rates.cache_clear()


def test_a_busy_machine_gets_the_built_in_rates_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "kept")
    isa, plain = ISAS["avx2"], rates.BUILT_IN
    disturbed = replace(plain, channel=9 * plain.channel)
    measured: list[Any] = []

    def measure(_: Any) -> Any:
        measured.append(_)
        return disturbed if len(measured) <= 3 else replace(plain, origin="measured")

    monkeypatch.setattr(rates, "measure", measure)
    for calls in (3, 3):
        rates.measured_rates.cache_clear()
        found = rates.measured_rates(isa)
        assert len(measured) == calls
        assert found.channel == plain.channel
        assert "implausible, 9.0x apart: is it busy?" in found.origin
    compiled = CpuTarget(isa="avx2").lower(captured("bert-cls"))
    assert "implausible" in str(compiled.explain(1, 8)).splitlines()[0]
    hour = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: hour)
    rates.measured_rates.cache_clear()
    assert rates.measured_rates(isa).origin == "measured"
    rates.measured_rates.cache_clear()


def test_close_formats_are_timed_on_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "kept")
    isa = ISAS["avx2"]
    close = weight(
        choose_format(weight(1.0, 60, 96, np.float32), isa).break_even, 60, 96, np.float32
    )
    choice = tuned(choose_format(close, isa), close, isa, rates.faster)
    assert choice.timed
    assert choice.costs[choice.format] == min(choice.costs.values())
    monkeypatch.delattr(rates, "_linears_seconds")
    assert tuned(choose_format(close, isa), close, isa, rates.faster) == choice
    far = weight(0.05, 60, 96, np.float32)
    assert not tuned(choose_format(far, isa), far, isa, rates.faster).timed


def test_steps_are_timed_against_the_peak() -> None:
    program = quantized(sparse_(captured("bert-cls"), 0.1), example_batch())
    explained = (
        CpuTarget(isa=RUNNABLE[0], rates="built-in").lower(program).explain(2, 40, timed=True)
    )
    text = str(explained)
    assert text.count("% of the core's peak") == len(explained.layers)
    assert "\nattention: " in text
    assert all(layer.measured is not None for layer in explained.layers)


def test_linears_of_one_shape_and_format_are_one_entry() -> None:
    program = quantized(sparse_(captured("bert-cls"), 0.1), example_batch())
    compiled = CpuTarget(isa=RUNNABLE[0], rates="built-in").lower(program)
    found = compiled.explain(2, 40, timed=True)
    text, full = found.summary(), str(found)
    # query, key and value; output; up; down of both layers, and the pooler and the classifier
    assert len(found.layers) == 10
    assert len(re.findall(r"^2 linears: ", text, re.MULTILINE)) == 4
    for name in ("attention.self.query+key+value", "attention.output.dense", "output.dense"):
        assert f"\n    bert.encoder.layer.*.{name} (0 to 1)\n" in text
        assert f"\nbert.encoder.layer.1.{name} (%linear" in full
    assert "\nbert.pooler.dense (%linear_12): " in text
    assert re.search(r"sparsity \d+\.\d% to \d+\.\d% -> ", text)
    assert "measured: " in text
    assert (full.splitlines()[0], full.splitlines()[-1]) == (
        text.splitlines()[0],
        text.splitlines()[-1],
    )
    assert len(text.splitlines()) < len(full.splitlines())


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return str(sparse_(captured("albert"), 0.1).save(tmp_path / "p"))


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_the_command(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain-cpu", saved, "--shape", "2x40", "--all") == 0
    every = capsys.readouterr().out
    assert run("explain-cpu", saved, "--shape", "2x40") == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) <= len(every.splitlines())
    assert shown.out.startswith("2x40 tokens, ")
    assert re.search(r"sparsity (8|9)\d\.\d% -> rows", shown.out)
    assert "break-even sparsity" in shown.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shape", "128"], "explain-cpu at --shape: '128' is not BATCHxTOKENS"),
        (["-t", "reference"], "'reference' is not the cpu target"),
    ],
)
def test_mistakes(
    saved: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run("explain-cpu", saved, *arguments) == 2
    assert expected in capsys.readouterr().err


def test_aligned_groups_get_blocks() -> None:
    matrix = np.repeat(weight(0.1, 60, 192, np.int8), 4, axis=1)
    assert choose_format(matrix, ISAS["avx512_vnni"]).format == "blocks"
    assert choose_format(weight(0.1, 60, 768, np.int8), ISAS["avx512_vnni"]).format == "quads"
