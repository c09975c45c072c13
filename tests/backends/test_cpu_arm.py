"""Arm without Arm: its kernels on a model of the dot products, and the code of the real ones."""

from __future__ import annotations

import ctypes
import re
from types import ModuleType

import numpy as np
import pytest

from sparsefx.backends.cpu.codegen.arm_dots import arm_dot
from sparsefx.backends.cpu.codegen.driver import driver_text
from sparsefx.backends.cpu.codegen.engine import Engine, assembly
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.codegen.panel import Panel, widest
from sparsefx.backends.cpu.kernels import blocks, dense_i8, quads
from sparsefx.backends.cpu.machine import isa
from sparsefx.backends.cpu.machine.isa import ISAS, IsaName
from sparsefx.errors import TargetError
from tests.backends.cpu_cases import ARM_MODELS, engine

DOTS: dict[IsaName, str] = {"neon_dotprod": "sdot", "neon_i8mm": "usdot"}


@pytest.mark.parametrize("name", ARM_MODELS)
def test_the_model_follows_the_manual(name: IsaName) -> None:
    f = Function("dots", ("words",))
    total, left, right, result = (f.index("ptr", f.argument("words"), n) for n in range(4))
    operands = (f.load("<4 x i32>", place) for place in (total, left, right))
    f.store(arm_dot(f, ISAS[name], *operands), result)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine(name).address("dots", f.text()))
    rng = np.random.default_rng(0)
    codes = np.int8 if ISAS[name].signed_codes else np.uint8
    lowest, highest = np.iinfo(codes).min, np.iinfo(codes).max
    for case in range(50):
        x = rng.integers(lowest, highest + 1, 16).astype(codes)
        w = rng.integers(-128, 128, 16).astype(np.int8)
        start = rng.integers(-(2**31), 2**31, 4).astype(np.int32)
        if case == 0:
            x[:], w[:], start[:] = highest, -128, -(2**31)
        found = np.zeros(4, np.int32)
        words = np.array([a.ctypes.data for a in (start, x, w, found)], np.int64)
        run(words.ctypes.data)
        sums = (x.astype(np.int64) * w).reshape(4, 4).sum(1) + start
        np.testing.assert_array_equal(found, sums.astype(np.int32))


def instructions(text: str) -> list[str]:
    """Mnemonics in the order of the assembly."""
    return re.findall(r"^\t([a-z]\w*)\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize(
    ("kernel", "dots", "zips"), [(quads, 16, 32), (blocks, 16, 0), (dense_i8, 96, 32)]
)
def test_instructions_of_the_kernels(
    name: IsaName, kernel: ModuleType, dots: int, zips: int
) -> None:
    text = assembly(kernel.emit(ISAS[name], 32, Epilogue(True)).text(), ISAS[name])
    found = instructions(text)
    # Dense: six rows times 16 tokens, twice, in the loop and after it. Sparse: in all spans but the
    # last, and in that.
    assert found.count(DOTS[name]) == dots
    assert sum(one in ("zip1", "zip2") for one in found) == zips
    assert "bl" not in found
    # Not one sum is spilled: only registers that belong to the caller are stored (as d8 to d15).
    assert not re.search(r"\t(st|ld)\w+\t.*\bq\d+.*\[sp", text)


@pytest.mark.parametrize(
    ("name", "code"), [("neon_dotprod", 0x4E809400), ("neon_i8mm", 0x4E809C00)]
)
def test_products_are_encoded_as_in_the_manual(name: IsaName, code: int) -> None:
    """SDOT: 0 Q=1 U=0 01110 10 0 Rm 1 0010 1 Rn Rd; USDOT: the same with 1 0011 1."""
    text = blocks.emit(ISAS[name], 32, Epilogue(True)).text()
    compiled = Engine(ISAS[name], None).object(text)[1]
    words = np.frombuffer(compiled[: len(compiled) // 4 * 4], np.uint32)
    assert int(np.count_nonzero(words & 0xFFE0FC00 == code)) == 16


@pytest.mark.parametrize("name", ["neon", "neon_dotprod", "neon_i8mm"])
def test_threads_wait_as_arm_does(name: IsaName) -> None:
    found = assembly(driver_text(ISAS[name]), ISAS[name])
    assert {"yield", "mrs", "msr"} <= set(instructions(found))
    assert "FPCR" in found
    assert "#98" in found  # futex
    assert "#124" in found  # sched_yield


def test_codes_are_in_order_on_arm() -> None:
    for name in DOTS:
        panel = Panel(ISAS[name], widest(ISAS[name]))
        assert (panel.width, panel.lanes, panel.vectors) == (32, 4, 8)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("neon",), "neon"),
        (("neon", "dotprod"), "neon_dotprod"),
        (("neon", "dotprod", "i8mm"), "neon_i8mm"),
    ],
)
def test_features_choose(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(features))
    assert isa.best_isa().name == expected
    assert isa.best_isa(integers=False).name == "neon"
    assert ISAS["neon_i8mm"].without_dots.name == "neon"


def test_a_machine_without_the_feature_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(("neon", "dotprod")))
    with pytest.raises(TargetError, match="cannot run 'neon_i8mm': it lacks i8mm") as caught:
        isa.isa("neon_i8mm")
    assert str(caught.value).startswith("cpu{isa='neon_i8mm'}: this machine")
    assert "isa='native'" in str(caught.value)
