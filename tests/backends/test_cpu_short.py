"""Floats of 16 bits: bf16 where the machine has it, fp16 on a model of its multiply-add."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.codegen.engine import assembly
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.kernels import convert, dense_bf16, rows_bf16, rows_fp16
from sparsefx.backends.cpu.lowering.costs import choose_format
from sparsefx.backends.cpu.machine import isa
from sparsefx.backends.cpu.machine.isa import ISAS, IsaName
from sparsefx.backends.cpu.plan.weights import Format, to_bf16
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import TargetError
from tests.backends.cpu_cases import LinearCase, padded_batch, quantized, sparse_
from tests.programs import captured

FORMATS: list[tuple[IsaName, Format]] = [
    ("avx512_bf16", "rows_bf16"),
    ("avx512_bf16", "dense_bf16"),
    ("amx_bf16_emulated", "dense_amx_bf16"),
    ("avx512_fp16", "rows_fp16"),
    ("avx512_fp16_emulated", "rows_fp16"),
]
CASES = [case for case in FORMATS if not isa.obstacle(case[0])]
ERROR = {
    "rows_bf16": 2.0**-7,
    "dense_bf16": 2.0**-7,
    "dense_amx_bf16": 2.0**-7,
    "rows_fp16": 2.0**-9,
}
"""Of a product: half a unit in the last place of both factors; fp16 also rounds sums of a block."""
MODELS: list[tuple[IsaName, str, float]] = [
    ("avx512_bf16", "bf16", 2e-3),
    ("amx_bf16_emulated", "bf16", 2e-3),
    ("avx512_fp16_emulated", "fp16", 3e-4),
]
bf16 = pytest.mark.skipif(bool(isa.obstacle("avx512_bf16")), reason="no AVX512_BF16 here")


@pytest.mark.parametrize(("name", "format"), CASES)
@pytest.mark.parametrize(
    ("tokens", "columns", "rows", "density"),
    [(1, 5, 3, 1.0), (20, 37, 7, 0.3), (130, 400, 70, 0.1), (33, 64, 9, 0.0)],
)
def test_small_integers_are_exact(
    name: IsaName, format: Format, tokens: int, columns: int, rows: int, density: float
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-7, 8, (tokens, columns)).astype(np.float32)
    w = rng.integers(-7, 8, (rows, columns)) * (rng.random((rows, columns)) < density)
    case = LinearCase(name, format, x, w.astype(np.float32))
    np.testing.assert_array_equal(case.run(), case.expected())


@pytest.mark.parametrize("density", [0.1, 1 / 768])
@pytest.mark.parametrize(("name", "format"), CASES)
def test_errors_are_those_of_rounded_inputs(name: IsaName, format: Format, density: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 768)).astype(np.float32)
    w = (rng.standard_normal((30, 768)) * (rng.random((30, 768)) < density)).astype(np.float32)
    case = LinearCase(name, format, x, w)
    off, sums = np.abs(case.run() - case.expected()), np.abs(x) @ np.abs(w.T)
    assert (off <= 1.01 * ERROR[format] * sums + 1e-6).all()
    assert density == 0.1 or (off > 0.25 * ERROR[format] * sums).any()  # sums even errors out


def test_bf16_is_rounded_to_nearest_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.0], np.float32)
    assert to_bf16(values).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xC040]


@pytest.mark.parametrize("width", [16, 32, 64])
def test_bf16_becomes_products_of_two(width: int) -> None:
    for module, count in ((rows_bf16, 4), (dense_bf16, 24)):
        isa_ = ISAS["avx512_bf16"]
        lines = assembly(module.emit(isa_, width, Epilogue()).text(), isa_).splitlines()
        dots = [line for line in lines if "vdpbf16ps" in line]
        assert len(dots) == count
        assert all(f"%{'xyz'[width // 32]}mm" in line and "rsp" not in line for line in dots)
        assert sum("vpunpck" in line and "wd" in line for line in lines) == 4


@pytest.mark.parametrize("width", [16, 32, 64])
def test_fp16_becomes_multiply_adds_of_ph(width: int) -> None:
    isa_ = ISAS["avx512_fp16"]
    text = assembly(rows_fp16.emit(isa_, width, Epilogue()).text(), isa_)
    assert len(re.findall(rf"vfmadd\d+ph.*%{'xyz'[width // 32]}mm", text)) == 4
    assert "call" not in text
    shorten = assembly(convert.emit_shorten(isa_, width).text(), isa_)
    assert "vcvtps2phx" in shorten


@pytest.mark.parametrize(("name", "precision", "most"), MODELS)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_models_stay_near_the_reference(
    name: IsaName, precision: str, most: float, density: float
) -> None:
    if isa.obstacle(name):
        pytest.skip(isa.obstacle(name))
    program = sparse_(captured("bert-cls"), density)
    target = CpuTarget(isa=name, precision=precision, rates="built-in", threads=2)  # type: ignore[arg-type]
    compiled = target.lower(program)
    assert f"_{precision} " in compiled.listing()
    for rows, length in ((1, 5), (3, 70)):
        batch = padded_batch(program, rows, length)
        with torch.no_grad():
            gap = (compiled(**batch)["logits"] - program(**batch)["logits"]).abs().max()
        assert 0 < float(gap) < most


@bf16
def test_saved_models_give_the_same_bits(tmp_path: Path) -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    batch = padded_batch(program, 2, 20)
    compiled = CpuTarget(precision="bf16", rates="built-in").lower(program)
    compiled.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    found = loaded(**{name: value.numpy() for name, value in batch.items()})["logits"]
    np.testing.assert_array_equal(found, compiled(**batch)["logits"].numpy())


@bf16
def test_integers_stay_integers() -> None:
    program = sparse_(captured("bert-cls"), 0.2)
    program = quantized(program, padded_batch(program, 4, 32))
    batch = padded_batch(program, 2, 40)
    plain = CpuTarget(isa="avx512_vnni", rates="built-in").lower(program)
    short = CpuTarget(precision="bf16", rates="built-in").lower(program)
    assert "bf16" not in short.listing()
    np.testing.assert_array_equal(short(**batch)["logits"], plain(**batch)["logits"])


@bf16
def test_fp32_is_the_default() -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    for target in (CpuTarget(), CpuTarget(isa="avx512_bf16")):
        assert "bf16" not in target.lower(program).listing()


@bf16
def test_formats_of_both_precisions_are_explained() -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    found = CpuTarget(precision="bf16", rates="built-in").lower(program).explain()
    text = str(found)
    assert "avx512_bf16 (not amx_bf16: it lacks " in text or "amx_bf16, one core" in text
    assert "-> rows_bf16" in text
    assert re.search(r"rows \d.*rows_bf16 \d.*dense_f32 \d.*dense_bf16 \d", text)


@bf16
def test_fp32_models_are_told_of_other_precisions() -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    text = str(CpuTarget(rates="built-in").lower(program).explain())
    assert re.search(r"avx512 \(precision='(bf16|fp16)' offers more formats\), one core", text)


def test_rates_choose_among_both_precisions() -> None:
    def chosen(density: float, name: IsaName) -> str:
        rng = np.random.default_rng(0)
        matrix = (rng.random((768, 768)) < density).astype(np.float32)
        return choose_format(matrix, ISAS[name]).format

    assert [chosen(d, "avx512_bf16") for d in (0.1, 1.0)] == ["rows_bf16", "dense_bf16"]
    assert [chosen(d, "avx512_fp16") for d in (0.1, 1.0)] == ["rows_fp16", "rows_fp16"]
    assert chosen(0.1, "avx512_vnni") == "rows"


def test_a_machine_without_them_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(ISAS["avx512_vnni"].features))
    program = captured("bert-cls")
    for precision, feature in (("bf16", "avx512bf16"), ("fp16", "avx512fp16")):
        with pytest.raises(
            TargetError, match=f"multiplies no {precision}: it lacks {feature}"
        ) as caught:
            CpuTarget(precision=precision).lower(program)  # type: ignore[arg-type]
        assert "precision='fp32'" in str(caught.value)
    with pytest.raises(TargetError, match="'avx2' has no products of bf16") as caught:
        CpuTarget(isa="avx2", precision="bf16").lower(program)
    assert str(caught.value).startswith("cpu{precision='bf16'}: ")
    assert "isa='native' or amx_bf16 or avx512_bf16" in str(caught.value)
