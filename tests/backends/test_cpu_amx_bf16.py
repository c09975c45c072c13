"""bf16 on AMX without AMX: the model of TDPBF16PS, and the instructions of the real kernel."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from sparsefx.backends.cpu.codegen.engine import Engine, assembly
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.kernels import dense_amx
from sparsefx.backends.cpu.kernels.amx_tiles import ModelTiles
from sparsefx.backends.cpu.lowering.costs import choose_format
from sparsefx.backends.cpu.machine import amx_host, isa
from sparsefx.backends.cpu.machine.isa import ISAS
from sparsefx.backends.cpu.measure import amx_check
from sparsefx.backends.cpu.plan.weights import pack, to_bf16
from tests.backends.test_cpu_amx import configuration, tile_operations

emulated = pytest.mark.skipif(bool(isa.obstacle("amx_bf16_emulated")), reason="no bf16 here")


@emulated
@pytest.mark.parametrize(("m", "k", "n"), [(16, 16, 16), (1, 1, 1), (5, 3, 11), (16, 7, 2)])
def test_the_model_follows_the_manual(m: int, k: int, n: int) -> None:
    """C += A x B on tiles 0 = 1 x 2, sums of even and of odd products apart."""
    f = Function("product", ("words",))
    tiles = ModelTiles(f)
    config, a, b, c = (f.index("ptr", f.argument("words"), number) for number in range(4))
    tiles.configure(config)
    for tile, place in enumerate((c, a, b)):
        tiles.load(tile, place, f.i64(64))
    tiles.dot_bf16(0, 1, 2)
    tiles.store(0, c, f.i64(64))
    tiles.release()
    rng = np.random.default_rng(m)
    left, right = (to_bf16(rng.standard_normal((16, 32))) for _ in range(2))
    total = rng.standard_normal((16, 16)).astype(np.float32)
    result = total.copy()
    shapes = configuration({0: (m, 4 * n), 1: (m, 4 * k), 2: (k, 4 * n)})
    words = np.array([x.ctypes.data for x in (shapes, left, right, result)], np.int64)
    address = Engine(ISAS["amx_bf16_emulated"], None).address("product", f.text())
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(words.ctypes.data)
    x, y = ((v.astype(np.uint32) << 16).view(np.float32) for v in (left, right))
    x, y = x[:m, : 2 * k].reshape(m, k, 2), y[:k, : 2 * n].reshape(k, n, 2)
    sums = np.zeros((2, m, n), np.float32)
    for step in range(k):
        for half in range(2):
            # Products of bf16 are exact in fp64, and so nearly is their sum with an fp32.
            exact = np.outer(x[:, step, half].astype(np.float64), y[step, :, half])
            sums[half] = (exact + sums[half]).astype(np.float32)
    np.testing.assert_array_equal(result[:m, :n], total[:m, :n] + (sums[0] + sums[1]))
    np.testing.assert_array_equal(result[m:], total[m:])


WIDE = """
ldtilecfg tilestored0 tilestored1 tilestored2 tilestored3 tilezero0 tilezero1 tilezero2 tilezero3
tileloadd4 tileloadd6 tdpbf16ps640 tileloadd7 tdpbf16ps741 tileloadd5 tdpbf16ps652 tdpbf16ps753
tilerelease
"""


def test_instructions_of_the_kernel() -> None:
    kernel = dense_amx.emit(ISAS["amx_bf16"], 64, Epilogue(activation="gelu")).text()
    text = assembly(kernel, ISAS["amx_bf16"])
    assert tile_operations(text).split() == WIDE.split()
    assert "callq" not in text
    # By the manual VEX.128.F3.0F38.W0 5C: sums in ModRM.reg, left in ModRM.rm, right in vvvv.
    code = Engine(ISAS["amx_bf16"], None).object(kernel)[1]
    for total, left, right in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)):
        product = (0xC4, 0xE2, (~right & 15) << 3 | 2, 0x5C, 0xC0 | total << 3 | left)
        assert code.count(bytes(product)) == 1


@emulated
def test_the_self_check_covers_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx_check, "FORMATS", ())
    monkeypatch.setattr(amx_check, "_HEADS", ())
    assert amx_check.check(ISAS["amx_bf16_emulated"]) == ""
    monkeypatch.setattr(amx_check, "pack", lambda w, format: pack(w + 1, format))
    found = amx_check.check(ISAS["amx_bf16_emulated"])
    assert found == "dense_amx_bf16 [3, 5] is wrong for 1 tokens"


def test_tiles_are_preferred_where_they_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(ISAS["amx_bf16"].features))
    for refused, expected in (("", "amx_bf16"), ("it differs", "avx512_bf16")):
        monkeypatch.setattr(amx_host, "refusal", lambda name, why=refused: why)
        assert isa.short_isa("native", "bf16").name == expected
    matrix = np.ones((768, 768), np.float32)
    choice = choose_format(matrix, ISAS["amx_bf16"])
    assert choice.format == "dense_amx_bf16"
    assert math.isclose(choice.dense, choice.costs["dense_amx_bf16"])
