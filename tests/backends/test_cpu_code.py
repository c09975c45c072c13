from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsefx.backends.cpu.codegen.engine import Engine, assembly
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.memory import aligned, aligned_copy
from sparsefx.backends.cpu.kernels import attention_i8, dense_f32, dense_i8, quads, rows
from sparsefx.backends.cpu.machine.isa import ISAS, IsaName
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.weights import FORMATS
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import RUNNABLE, quantized, sparse_
from tests.programs import captured
from tests.tiny_models import example_batch

# Compiled for every instruction set, whether or not this machine can run it.


@pytest.mark.parametrize(
    ("name", "instruction", "register"),
    [("avx2", "vfmadd231ps", "ymm"), ("avx512", "vfmadd231ps", "zmm"), ("neon", "fmla", "v")],
)
def test_floats_become_fused_multiply_adds(name: IsaName, instruction: str, register: str) -> None:
    isa = ISAS[name]
    for module in (rows, dense_f32):
        text = assembly(module.emit(isa, 32, Epilogue()).text(), isa)
        lines = [line for line in text.splitlines() if instruction in line]
        assert lines
        assert all(register in line for line in lines)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_bytes_become_dot_products_without_spills(width: int) -> None:
    isa = ISAS["avx512_vnni"]
    for module in (quads, dense_i8):
        text = assembly(module.emit(isa, width, Epilogue(integer=True)).text(), isa)
        dots = [line for line in text.splitlines() if "vpdpbusd" in line]
        assert dots
        assert not any("rsp" in line for line in dots)
    assert "vpdpbusd" in assembly(attention_i8.emit(isa, width).text(), isa)


def test_objects_are_kept_only_in_a_private_folder(tmp_path: Path) -> None:
    isa = ISAS[RUNNABLE[0]]
    kernel = rows.emit(isa, 16, Epilogue())
    folder = tmp_path / "objects"
    first, second = Engine(isa, folder), Engine(isa, folder)
    first.address(kernel.name, kernel.text())
    second.address(kernel.name, kernel.text())
    assert (first.compiled, second.compiled) == (1, 0)
    for stored in folder.iterdir():
        stored.write_bytes(stored.read_bytes()[:-1] + b"?")
    damaged = Engine(isa, folder)
    damaged.address(kernel.name, kernel.text())
    assert damaged.compiled == 1
    folder.chmod(0o777)
    shared = Engine(isa, folder)
    shared.address(kernel.name, kernel.text())
    assert shared.compiled == 1


@pytest.mark.parametrize("size", [1, 63, 1000, 3 << 20])
def test_memory_starts_at_a_line(size: int) -> None:
    given = np.arange(size, dtype=np.int16)
    copied, zeros = aligned_copy(given), aligned(size)
    assert (copied.ctypes.data % 64, zeros.ctypes.data % 64) == (0, 0)
    np.testing.assert_array_equal(copied, given)
    assert len(zeros) == size
    assert not zeros.any()


def test_linears_ask_for_the_scratch_of_their_format() -> None:
    words = {"rows": 10, "columns": 130, "spans": 1}
    sizes = {f: catalog.linear(f, Epilogue(True)).scratch(words, 1) for f in FORMATS}
    sums = 2 * 32 * 64 * 4
    needed = {
        "rows": 2560,
        "rows_bf16": 2560,
        "rows_fp16": 2560,
        "dense_amx": sums,
        "dense_amx_bf16": sums,
        "masked_amx": sums + 2 * 2 * 1024 * 3,
    }
    assert sizes == {format: needed.get(format, 0) for format in FORMATS}
    for format in ("quads", "blocks"):
        assert catalog.linear(format, Epilogue(True)).scratch(words | {"spans": 2}, 1) == 2560


def test_the_plan_explains_itself() -> None:
    program = sparse_(captured("bert-cls"), 0.1)
    compiled = CpuTarget(isa=RUNNABLE[0]).lower(quantized(program, example_batch()))
    assert "attention" in compiled.listing()
    explained = str(compiled.explain())
    assert explained.count("break-even sparsity") == len(compiled.listing().split(" i8_")) - 1
    assert "define void" in compiled.code(1)
    assert ".globl" in compiled.code(1, assembly=True)
    assert compiled.cost().total("weight bytes") > 0
