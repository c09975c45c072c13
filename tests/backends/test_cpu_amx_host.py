"""Who may use AMX: features, permission, the self-check, and what explanations and files say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsefx.backends.cpu import amx_check, amx_host, artifact, isa
from sparsefx.backends.cpu.isa import ISAS
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.backends.cpu.weights import pack
from sparsefx.errors import ArtifactError, TargetError
from tests.backends.cpu_cases import EMULATED, padded_batch, quantized, sparse_
from tests.programs import captured

emulated = pytest.mark.skipif(not EMULATED, reason="this machine has no vpexpandb")


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known of AMX, before and after; the folder where verdicts are kept."""
    folder = tmp_path / "kept"
    monkeypatch.setattr(amx_host, "cache_folder", lambda: folder)
    monkeypatch.setattr(amx_host, "refusal", amx_host.refusal.__wrapped__)
    return folder


@pytest.fixture
def featured(anew: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `anew`, on a machine that says it has all of AMX."""
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(ISAS["amx"].features))
    return anew


@emulated
def test_the_child_checks_the_kernels() -> None:
    assert amx_host.child_verdict(ISAS["amx_emulated"]) == ("", True)


@emulated
def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx_check, "_SHAPES", ((33, 64, 0.5),))
    monkeypatch.setattr(amx_check, "_TOKENS", (20,))
    assert amx_check.check(ISAS["amx_emulated"]) == ""
    monkeypatch.setattr(amx_check, "pack", lambda w, format, zero: pack(w | 1, format, zero))
    found = amx_check.check(ISAS["amx_emulated"])
    assert found == "dense_amx [33, 64] is wrong for 20 tokens"


@pytest.mark.parametrize(
    ("script", "verdict", "kept"),
    [
        ("kill -ILL $$", "its self-check died of SIGILL", True),
        ("echo dense_amx is wrong; exit 1", "its self-check failed: dense_amx is wrong", True),
        ("echo exact", "", True),
        ("echo no module >&2; exit 1", "its self-check failed: no module", False),
        ("echo hm", "its self-check said 'hm'", False),
    ],
)
def test_verdicts(
    featured: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: str,
    verdict: str,
    kept: bool,
) -> None:
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o700)
    monkeypatch.setattr(amx_host, "ask_permission", lambda: "")
    monkeypatch.setattr(sys, "executable", str(child))
    assert amx_host.refusal() == verdict
    files = list(featured.glob("amx-*.json"))
    assert bool(files) == kept
    child.write_text("#!/bin/sh\nexit 3\n")
    assert (amx_host.refusal() == verdict) == kept
    native = isa.best_isa()
    assert (native.name == "amx") == (verdict == "")
    if files:
        assert json.loads(files[0].read_bytes()[32:]) == verdict


def test_a_child_that_cannot_start_says_nothing_of_the_machine(
    featured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    verdict, final = amx_host.child_verdict(ISAS["amx"])
    assert verdict.startswith("its self-check could not be run")
    assert not final
    # There sys.executable is the program itself: it must not be started again.
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    verdict, final = amx_host.child_verdict(ISAS["amx"])
    assert verdict.startswith("its self-check needs an interpreter")
    assert not final


def test_permission_refused(featured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the operating system gives no tiles to this process (Operation not supported)"
    monkeypatch.setattr(amx_host, "ask_permission", lambda: why)
    assert isa.obstacle("amx") == why
    assert isa.best_isa().name == "avx512_vnni"
    with pytest.raises(TargetError, match="cannot run 'amx': the operating system gives no tiles"):
        isa.isa("amx")


def test_a_machine_without_amx_says_so(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = frozenset(ISAS["avx512_vnni"].features)
    monkeypatch.setattr(isa, "host_features", lambda: features)
    monkeypatch.delattr(amx_host, "ask_permission")
    assert isa.obstacle("amx") == "it lacks avx512vbmi, avx512vbmi2, amx-tile, amx-int8"


@emulated
def test_explanations_say_why_not_amx() -> None:
    program = sparse_(captured("bert-cls"), 0.2)
    program = quantized(program, padded_batch(program, 4, 32))
    native = CpuTarget(rates="built-in").lower(program)
    if isa.obstacle("amx"):
        assert f"avx512_vnni (not amx: {isa.obstacle('amx')})" in str(native.explain())
    asked = CpuTarget(isa="avx512_vnni", rates="built-in").lower(program)
    assert "not amx" not in str(asked.explain())
    tiled = str(CpuTarget(isa="amx_emulated").lower(program).explain())
    assert "amx_emulated, one core; rates built in" in tiled
    assert "masked_amx" in tiled


@emulated
def test_a_saved_model_with_tiles(tmp_path: Path, featured: Path) -> None:
    program = sparse_(captured("bert-cls"), 0.2)
    batch = padded_batch(program, 2, 20)
    program = quantized(program, batch)
    compiled = CpuTarget(isa="amx_emulated", format="masked_amx").lower(program)
    loaded = artifact.load(compiled.save(tmp_path / "model"), threads=2)
    arrays = {name: value.numpy() for name, value in batch.items()}
    np.testing.assert_array_equal(loaded(**arrays)["logits"], compiled(**batch)["logits"])


def test_a_plan_for_amx_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "obstacle", lambda name: f"{name} died")
    with pytest.raises(ArtifactError, match="made for amx: amx died"):
        artifact._isa({"isa": "amx"}, tmp_path)
