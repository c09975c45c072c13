"""Attention on tiles has the bits of attention on dot products."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefx.backends.cpu.codegen.engine import Engine, assembly
from sparsefx.backends.cpu.kernels import attention_amx
from sparsefx.backends.cpu.machine.isa import ISAS
from sparsefx.backends.cpu.measure.amx_check import attention
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import EMULATED, engine, padded_batch, pool
from tests.backends.test_cpu_amx import encoded, tile_operations
from tests.int8 import int8

emulated = pytest.mark.skipif(not EMULATED, reason="this machine has no vpexpandb")


@emulated
@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize(
    ("heads", "size", "lengths"),
    [
        (2, 64, [128]),
        (3, 32, [1, 17, 40]),
        (1, 4, [65, 2]),
        (2, 20, [70, 33, 31]),
        (1, 68, [15]),
        (1, 128, [97]),
        (1, 16, [300]),
    ],
)
def test_the_bits_of_dot_products(
    heads: int, size: int, lengths: list[int], by_distance: bool
) -> None:
    code, threads = engine(EMULATED[0]), pool(EMULATED[0], 2)
    found, expected = (
        attention(kind, heads, size, lengths, code, threads, by_distance=by_distance)
        for kind in ("attention_amx", "attention_i8")
    )
    assert np.ptp(expected) > 0.1
    np.testing.assert_array_equal(found, expected)


@emulated
def test_whole_models() -> None:
    program = int8("bert-cls", zeros=0.8)
    tiled = CpuTarget(isa="amx_emulated").lower(program)
    plain = CpuTarget(isa="avx512_vnni", rates="built-in").lower(program)
    assert "attention_amx" in tiled.listing()
    assert "attention_i8" in plain.listing()
    for rows, length in ((1, 3), (3, 21), (2, 63)):
        batch = padded_batch(program, rows, length)
        np.testing.assert_array_equal(tiled(**batch)["logits"], plain(**batch)["logits"])


# Scores of 32 queries, then of 16. The end of the loop over keys stands first.
TWO = """
tilestored0 tilestored1 tilezero0 tilezero1 tileloadd6 tileloadd7 tdpbsud760 tileloadd7 tdpbsud761
"""
ONE = "tilestored0 tilezero0 tileloadd6 tileloadd7 tdpbsud760"


@pytest.mark.parametrize(
    ("width", "by_distance"), [(16, False), (32, False), (64, False), (64, True)]
)
def test_instructions(width: int, by_distance: bool) -> None:
    kernel = attention_amx.emit(ISAS["amx"], width, by_distance=by_distance).text()
    text = assembly(kernel, ISAS["amx"])
    assert tile_operations(text).split() == f"ldtilecfg {TWO} {ONE} tilerelease".split()
    # LLVM makes memset of loops that write zeros: it touches no tile.
    assert text.count("callq") == text.count("$memset")
    code = Engine(ISAS["amx"], None).object(kernel)[1]
    assert [code.count(encoded(total, 6, 7)) for total in range(3)] == [2, 1, 0]
