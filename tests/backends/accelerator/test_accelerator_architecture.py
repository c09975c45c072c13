"""Architecture files: presets load, mistakes are told with their path."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import yaml

from sparsefx.backends.accelerator.engines.systolic import Systolic
from sparsefx.backends.accelerator.hardware.archfile import (
    dump_architecture,
    load_architecture,
    preset_names,
    read_architecture,
)
from sparsefx.backends.accelerator.hardware.architecture import perturbed, quantities
from sparsefx.backends.accelerator.hardware.quantity import Quantity
from sparsefx.errors import TargetError

EXPECTED = {
    "anton", "moffett-s4-like", "moffett-s10-like", "moffett-s30-like", "eie-64", "eyeriss-v2-pe",
    "scnn", "sigma-128", "dstc", "tensor-core-int8", "tensor-core-2-4", "a100-fp16", "a100-2-4",
    "tpu-v4-like", "scalesim-compat", "stonne-os-compat",
}  # fmt: skip


def test_every_promised_preset_ships() -> None:
    assert set(preset_names()) >= EXPECTED


@pytest.mark.parametrize("name", preset_names())
def test_presets_say_where_they_come_from_and_round_trip(name: str) -> None:
    arch = load_architecture(name)
    assert arch.name == name
    assert arch.source
    assert sum(arch.statuses().values()) == len(quantities(arch))
    assert read_architecture(yaml.safe_dump(dump_architecture(arch)), name) == arch


def test_the_s4_peak_is_the_published_one() -> None:
    arch = load_architecture("moffett-s4-like")
    peak = 2 * 64 * 8 * arch.all_cores * arch.clock.value
    assert peak * 32 / 1e12 == pytest.approx(943.6, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cloc: 1 GHz | assumed", "cloc: there is no such key"),
        ("clock: 1 GB/s | assumed", "clock: expected hertz, found bytes per second"),
        ("clock: 1 GHz", "clock: '1 GHz' does not say where it comes from"),
        ("clock: 1 GHz | guessed", "clock: 'guessed' is not a status; known: published, derived"),
        ("clock: 1 GHz | assumed\nclock: 2 GHz | assumed", "the key 'clock' stands here twice"),
        ("engine: {kind: lokstep}", "did you mean 'lock-step'?"),
        ("engine: {kind: systolic}", "another kind of engine takes its own numbers"),
        ("engine: {kind: 'myeng:RowSkipper', numbers: {}}", "must be on PYTHONPATH"),
        ("clock: fast | assumed", "clock: 'fast | assumed' is not a number with a unit"),
        ("clock: 1 Ghz | assumed", "'Ghz' is not a known unit"),
        ("dram: {bandwidth: 0 GB/s | assumed}", "dram.bandwidth: must be more than zero"),
        ("dram: {bandwith: 1 GB/s | assumed}", "dram.bandwith: there is no such key"),
        ("engine: {kind: lokstep, numbers: {}}", "did you mean 'lock-step'?"),
        ("engine: {numbers: {bnk: 3 | assumed}}", "engine.numbers.bnk: BankBalanced has no"),
        ("weights: {kind: zip}", "there is no weights 'zip'"),
        ("energy: 3nm", "there is no energy table '3nm'"),
        ("sram: []", "no SRAM level holds weights"),
        ("sram: big", "sram: expected a list, each entry behind a '-'"),
        ("drm: {}", "drm: there is no such key; did you mean 'dram'?"),
        ("sram: [{nam: L1}]", "sram.0.nam: there is no such key; did you mean 'name'?"),
        ("vector: {lunch: 1 us | assumed}", "vector.lunch: there is no such key; did you mean"),
        (
            "engine: {kind: systolic, numbers: {}, options: {dataflow: xs}}",
            "engine.options.dataflow: 'xs'",
        ),
        (
            "engine: {numbers: {lanes: [8 | assumed]}}",
            "engine.numbers.lanes: (8,): Input should be a valid",
        ),
        (
            "engine: {kind: 'os.path:join', numbers: {}}",
            "engine.kind: 'posixpath:join' is no dataclass",
        ),
        ("weights: {kind: n-of-m, numbers: {n: 9 | assumed, m: 4 | assumed}}", "0 < n <= m is"),
        (
            "engine: {numbers: {lanes: 0 | assumed}}",
            "- engine.numbers.lanes: must be more than zero",
        ),
        ("engine: {numbers: {lanes: 1.5 | assumed}}", "lanes: must be a whole number"),
        ("cores: 2.5 | assumed", "cores: must be a whole number"),
        ("utilisation: 150 % | assumed", "utilisation: must be at most 100 %"),
    ],
)
def test_mistakes_are_told_with_their_path(change: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        read_architecture(f"base: anton\n{change}", "mine.yaml")
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_file_without_a_base_is_told_of_presets() -> None:
    with pytest.raises(TargetError, match="start from a preset") as caught:
        read_architecture("name: mine\nclock: 1 GHz | assumed", "mine.yaml")
    assert "sram: Field required" in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    text = "base: anton\nclock: 1\ndram: {bandwidth: 1 s | assumed}\nx: 1"
    with pytest.raises(TargetError, match="3 mistakes in the architecture"):
        read_architecture(text, "mine.yaml")


def test_an_unknown_preset_suggests_one() -> None:
    with pytest.raises(TargetError, match="did you mean 'anton'"):
        load_architecture("antn")


def test_a_missing_file_is_told_of_the_preset_that_was_meant() -> None:
    with pytest.raises(TargetError, match=r"at eie-46\.yaml: there is no such file") as caught:
        load_architecture("eie-46.yaml")
    assert caught.value.hint.startswith("did you mean 'eie-64'?; presets: a100-2-4, a100-fp16, ")
    with pytest.raises(TargetError, match="hint: presets: a100-2-4, ") as caught:
        load_architecture("path/to/mine.yaml")


@dataclass(frozen=True)
class Odd(Systolic):
    """An engine with a number that must be given, and that must be odd."""

    odd: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.odd % 2 == 0:
            raise ValueError(f"odd={self.odd} is even")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("{odd: 2 | assumed}", "mine.yaml: engine.numbers: odd=2 is even"),
        ("{}", "mine.yaml: engine.numbers: .*missing 1 required keyword-only argument: 'odd'"),
    ],
)
def test_mistakes_that_an_engine_of_ones_own_finds_are_told_with_the_file(
    numbers: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Odd=Odd))
    text = f"base: anton\nengine: {{kind: 'mine:Odd', numbers: {numbers}}}"
    with pytest.raises(TargetError, match=message):
        read_architecture(text, "mine.yaml")


def test_a_number_can_be_moved() -> None:
    arch = load_architecture("anton")
    moved = perturbed(arch, "dram.bandwidth", 1.2)
    assert moved.dram.bandwidth.value == pytest.approx(arch.dram.bandwidth.value * 1.2)
    assert perturbed(arch, "cores", 1.2).cores.value == 10
    assert perturbed(arch, "sram.0.capacity", 2).sram[0].capacity.value == 112_000
    assert Quantity.parse("50 % | assumed").scaled(3).value == 1.0


def test_numbers_are_shown_as_one_writes_them() -> None:
    shown = {
        "900 MHz": "900 MHz",
        "50 ns": "50 ns",
        "262144 B": "256 KiB",
        "0.8 GHz": "800 MHz",
    }
    for written, text in shown.items():
        quantity = Quantity.parse(f"{written} | assumed")
        assert quantity.text == text
        assert Quantity.parse(str(quantity)) == quantity
