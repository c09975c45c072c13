"""Who may use AMX: features, permission, the self-check, and what explanations and files say."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsefx.backends.cpu import artifact
from sparsefx.backends.cpu.machine import amx_host, isa
from sparsefx.backends.cpu.machine.isa import ISAS
from sparsefx.backends.cpu.measure import amx_check
from sparsefx.backends.cpu.plan.weights import pack
from sparsefx.backends.cpu.target import CpuTarget
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
def test_the_child_checks_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Code that happens to lie in the current folder is not run.
    for name in ("hmac", "select"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(2)")
    monkeypatch.chdir(tmp_path)
    assert amx_host.child_verdict(ISAS["amx_emulated"]) == ("", math.inf)


@emulated
def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx_check, "_SHAPES", ((33, 64, 0.5),))
    monkeypatch.setattr(amx_check, "_TOKENS", (20,))
    assert amx_check.check(ISAS["amx_emulated"]) == ""
    monkeypatch.setattr(amx_check, "pack", lambda w, format, zero: pack(w | 1, format, zero))
    found = amx_check.check(ISAS["amx_emulated"])
    assert found == "dense_amx [33, 64] is wrong for 20 tokens"


@emulated
@pytest.mark.parametrize("wrong", [0, 1])
def test_wrong_attention_is_found_for_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    pools: list[object] = []

    def attention(kind: str, *arguments: object, by_distance: bool) -> NDArray[np.bool_]:
        pool = arguments[-1]
        if pool not in pools:
            pools.append(pool)
        return np.full(3, kind == "attention_amx" and pools.index(pool) == wrong)

    monkeypatch.setattr(amx_check, "_SHAPES", ())
    monkeypatch.setattr(amx_check, "attention", attention)
    found = amx_check.check(ISAS["amx_emulated"])
    assert found == "attention with heads of 64 channels differs for (128,) tokens"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A shell script in the place of the interpreter that runs the self-check."""
    child = folder / "python"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))
    return child


@pytest.mark.parametrize(
    ("script", "verdict", "kept"),
    [
        ("echo exact", "", True),
        ("kill -ILL $$", "its self-check died of SIGILL", True),
        ("kill -SEGV $$", "its self-check died of SIGSEGV", True),
        ("echo dense_amx is wrong; exit 2", "its self-check failed: dense_amx is wrong", True),
        ("exec sleep 5", "its self-check took more than 1 s", True),
        ("kill -KILL $$", "its self-check died of SIGKILL", False),
        ("kill -TERM $$", "its self-check died of SIGTERM", False),
        ("kill -40 $$", "its self-check died of signal 40", False),
        ("echo hm; exit 1", "its self-check failed: hm", False),
        ("echo 'unknown option' >&2; exit 2", "its self-check failed: unknown option", False),
        ("echo no module >&2; exit 1", "its self-check failed: no module", False),
        ("exit 7", "its self-check failed: exit code 7", False),
        ("echo hm", "its self-check said 'hm'", False),
        (r"printf '\377\n'", "its self-check said '\ufffd'", False),
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
    child = stand_in(tmp_path, monkeypatch, script)
    monkeypatch.setattr(amx_host, "ask_permission", lambda: "")
    monkeypatch.setattr(amx_host, "_SECONDS", 1)
    first = amx_host.refusal()
    files = list(featured.glob("amx-*.json"))
    assert bool(files) == kept
    assert first == (f"{verdict} (kept in {files[0]})" if files and verdict else verdict)
    child.write_text("#!/bin/sh\nexit 3\n")
    assert (amx_host.refusal() == first) == kept
    native = isa.best_isa()
    assert (native.name == "amx") == (verdict == "")
    if files:
        why, until = json.loads(files[0].read_bytes()[32:])
        assert why == verdict
        assert (until == math.inf) == ("took" not in verdict)


def test_a_check_that_took_too_long_is_tried_again(
    featured: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = iter([("it took long", 0.01), ("it was killed", 0.0), ("", math.inf)])
    monkeypatch.setattr(amx_host, "ask_permission", lambda: "")
    monkeypatch.setattr(amx_host, "child_verdict", lambda isa: next(results))
    caplog.set_level("WARNING", "sparsefx")
    assert amx_host.refusal().startswith("it took long (kept in ")
    time.sleep(0.02)
    assert amx_host.refusal() == "it was killed"
    assert [amx_host.refusal() for _ in range(2)] == ["", ""]
    said = "checking the AMX kernels once on this machine, 120 s at most"
    assert caplog.messages == [said] * 3


def test_a_verdict_is_one_of_a_version_of_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite

    key = amx_host._key(ISAS["amx"])
    assert key == amx_host._key(ISAS["amx"])
    monkeypatch.setattr(llvmlite, "__version__", "0")
    assert key != amx_host._key(ISAS["amx"])


@pytest.mark.parametrize(
    ("executable", "why"),
    [
        ("/nowhere/python", "its self-check could not be run"),
        ("/nowhere/py\0thon", "its self-check needs a Python interpreter, but this process runs"),
        ("/nowhere/python\0", "its self-check could not be run"),
        ("/bin/false", "its self-check needs a Python interpreter, but this process runs in /bin"),
        ("", "its self-check needs a Python interpreter, but this process does not know"),
        (None, "its self-check needs a Python interpreter, but this process does not know"),
    ],
)
def test_a_child_that_cannot_start_says_nothing_of_the_machine(
    featured: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None, why: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    verdict, seconds = amx_host.child_verdict(ISAS["amx"])
    assert verdict.startswith(why)
    assert seconds == 0


def test_a_frozen_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    verdict, seconds = amx_host.child_verdict(ISAS["amx"])
    assert verdict == "its self-check needs a Python interpreter, but this program is a frozen one"
    assert seconds == 0


def test_permission_refused(featured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the operating system gives no tiles to this process (Operation not supported)"
    monkeypatch.setattr(amx_host, "ask_permission", lambda: why)
    monkeypatch.setattr(amx_host, "child_verdict", lambda isa: ("", math.inf))
    assert isa.obstacle("amx") == why
    assert isa.best_isa().name == "avx512_vnni"
    with pytest.raises(TargetError, match="cannot run 'amx': the operating system gives no tiles"):
        isa.isa("amx")


def test_permission_is_not_asked_for_kernels_that_failed(
    featured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(amx_host, "ask_permission")
    monkeypatch.setattr(amx_host, "child_verdict", lambda isa: ("it died", 0.0))
    assert amx_host.refusal() == "it died"


def test_permission_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

        def syscall(self, *arguments: int) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return -1

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ctypes, "CDLL", Libc)
    assert "alternate signal stack of a thread is too small" in amx_host.ask_permission()


@pytest.mark.parametrize(("refused", "wrong", "code"), [("no", "", 1), ("", "hm", 2), ("", "", 0)])
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: str,
    wrong: str,
    code: int,
) -> None:
    monkeypatch.setattr(amx_check, "ask_permission", lambda: refused)
    monkeypatch.setattr(amx_check, "check", lambda isa: wrong)
    assert amx_check.main() == code
    assert capsys.readouterr().out == f"{refused or wrong or 'exact'}\n"


def test_a_machine_without_amx_says_so(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = frozenset(ISAS["avx512_vnni"].features)
    monkeypatch.setattr(isa, "host_features", lambda: features)
    monkeypatch.delattr(amx_host, "ask_permission")
    monkeypatch.delattr(amx_host, "child_verdict")
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
def test_fp32_models_ask_nothing_of_tiles(featured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(amx_host, "refusal")
    program = sparse_(captured("bert-cls"), 0.2)
    assert CpuTarget()._isa(program).name == "avx512"


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
