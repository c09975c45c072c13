"""Whole machines against published times, throughputs and energies."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefx.backends.accelerator.engines.base import BoolArray, Gemm
from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.simulation.roofline import roofline
from sparsefx.backends.accelerator.simulation.tile_level import simulate
from sparsefx.backends.accelerator.workload.bert import EncoderSize, balanced_mask, encoder_workload
from sparsefx.backends.accelerator.workload.operations import MatmulOp, Workload


def one_product(
    m: int, n: int, k: int, mask: BoolArray | None = None, activation: BoolArray | None = None
) -> Workload:
    op = MatmulOp("product", m, n, k, ("",), mask=mask, activation=activation)
    return Workload("one product", (op,), 1, m)


def pattern(rows: int, columns: int, n: int, m: int) -> BoolArray:
    return np.broadcast_to(np.arange(columns) % m < n, (rows, columns)).copy()


ANTON = {1: 800, 2: 1580, 4: 3030, 8: 5490, 16: 9320, 20: 10820}
"""Sentences a second by compression, digitised from the SparseBERT paper's figure."""


def test_anton_curve_within_two_percent_with_one_fitted_scalar() -> None:
    arch = load_architecture("anton")
    fitted = [path for path in ("utilisation",) if getattr(arch, path).status == "fitted"]
    assert fitted == ["utilisation"]
    for ratio, published in ANTON.items():
        bound = roofline(encoder_workload(EncoderSize(), ratio=ratio, distinct=False), arch)
        seconds = bound.compute / arch.clock.value
        assert 1 / seconds == pytest.approx(published, rel=0.02), ratio


@pytest.mark.parametrize("ratio", ANTON)
def test_anton_tile_model_within_two_percent(ratio: int) -> None:
    # The tiles add what the bound leaves out: loading the first inputs, the last vector op.
    workload = encoder_workload(EncoderSize(), ratio=ratio, batch=16, distinct=False)
    run = simulate(workload, load_architecture("anton"))
    assert run.throughput == pytest.approx(ANTON[ratio], rel=0.02)


def test_slots_shared_by_activation_rows_do_not_round_up() -> None:
    # 20x leaves 38.4 slots of 768. Eight lanes along k would round them up to 40, which costs
    # 4 %; the published point at 20x lies 1 % above the ratio of the dense one.
    engine = Machine(load_architecture("anton")).engine
    mask = balanced_mask(768, 768, 20, np.random.default_rng(0))
    cycles = {
        ratio: engine.run(Gemm(128, 768, 768, m)).cycles for ratio, m in ((1, None), (20, mask))
    }
    assert cycles[1] / cycles[20] == pytest.approx(20, rel=0.015)


def test_scalesim_bert_base_on_a_128_x_128_array_to_the_cycle() -> None:
    # SCALE-Sim 3.0.0: 2,790,360 cycles for BERT-base's products at 128 tokens.
    engine_cycles = 0
    engine = Machine(load_architecture("scalesim-compat")).engine
    for op in encoder_workload(EncoderSize()).matmuls:
        engine_cycles += engine.run(op.gemm).cycles * op.copies
    assert engine_cycles == 2_790_360


def test_tpu_v4_products_within_eight_percent(golden_folder: Path) -> None:
    with (golden_folder / "tpu_v4_gemm.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    arch = load_architecture("tpu-v4-like")
    errors = []
    for m, n, k, microseconds in rows:
        run = simulate(one_product(int(m), int(n), int(k)), arch)
        errors.append(abs(run.seconds * 1e6 / float(microseconds) - 1))
    assert np.mean(errors) < 0.08


@pytest.mark.parametrize(
    ("preset", "mask", "milliseconds"),
    [("a100-fp16", None, 0.87), ("a100-2-4", pattern(10240, 3072, 2, 4), 0.63)],
)
def test_a100_linear_within_ten_percent(
    preset: str, mask: BoolArray | None, milliseconds: float
) -> None:
    # PyTorch semi-structured sparsity, linear 3072 x 10240 x 3072 in fp16.
    run = simulate(one_product(3072, 10240, 3072, mask), load_architecture(preset))
    assert run.seconds * 1e3 == pytest.approx(milliseconds, rel=0.10)


def test_a100_compiled_bert_within_ten_percent() -> None:
    # BERT-base on SQuAD, 16 x 384 tokens, fp16, compiled: 11.47 ms dense, 9.68 ms with 2:4. The
    # preset is fitted to the dense one and to the two linears; the 2:4 one is not used in the fit.
    dense = encoder_workload(EncoderSize(), batch=16, tokens=384)
    ops = tuple(
        replace(op, mask=pattern(op.n, op.k, 2, 4))
        if isinstance(op, MatmulOp) and op.copies == 1
        else op
        for op in dense.ops
    )
    slow = simulate(dense, load_architecture("a100-fp16"))
    fast = simulate(replace(dense, ops=ops), load_architecture("a100-2-4"))
    assert slow.seconds * 1e3 == pytest.approx(11.47, rel=0.02)
    assert fast.seconds * 1e3 == pytest.approx(9.68, rel=0.05)
    assert 1.02 <= slow.seconds / fast.seconds <= 1.25


@pytest.mark.parametrize(
    ("column", "preset"),
    [
        ("TC", "tensor-core-int8"),
        ("STC", "tensor-core-2-4"),
        ("STC_flexible", "tensor-core-flexible"),
    ],
)
def test_sparseloop_energy_within_fifteen_percent(
    golden: dict[str, Any], column: str, preset: str
) -> None:
    data = golden["sparseloop_fig15"]
    index = data["cols"].index(column)
    arch = load_architecture(preset)
    for layer in (key for key in data if key.startswith("M")):
        sizes = {part[0]: int(part[1:]) for part in layer.split("-") if part[0] in "MKN"}
        m, n, k = sizes["N"], sizes["M"], sizes["K"]
        active = np.random.default_rng(0).random((m, k)) < float(layer.split("IAD")[1])
        for density, rows in data[layer].items():
            group = round(2 / float(density))
            mask = pattern(n, k, 2, group) if group > 2 and column != "TC" else None
            if column == "STC" and group > 4:
                mask = pattern(n, k, 2, 4)
            run = simulate(one_product(m, n, k, mask, active), arch)
            microjoules = sum(run.energy.values()) / 1e6
            assert microjoules == pytest.approx(rows[index][1], rel=0.15), (layer, density)
