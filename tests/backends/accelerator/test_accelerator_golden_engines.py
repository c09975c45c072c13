"""Engines against published cycle counts. What is not to the cycle says how far off it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefx.backends.accelerator.engines.base import BoolArray, Gemm
from sparsefx.backends.accelerator.engines.channel_product import ChannelProduct
from sparsefx.backends.accelerator.engines.csc_fifo import CscFifo
from sparsefx.backends.accelerator.engines.outer_product import OuterProduct
from sparsefx.backends.accelerator.engines.sigma import Sigma
from sparsefx.backends.accelerator.engines.systolic import Systolic
from sparsefx.backends.accelerator.engines.systolic_nm import SystolicNM
from sparsefx.backends.accelerator.engines.tensor_core import TensorCore


def random_mask(rows: int, columns: int, density: float, seed: int = 0) -> BoolArray:
    return np.random.default_rng(seed).random((rows, columns)) < density


def pattern(rows: int, columns: int, n: int, m: int) -> BoolArray:
    return np.broadcast_to(np.arange(columns) % m < n, (rows, columns)).copy()


def test_scalesim_dense_to_the_cycle(golden: dict[str, Any]) -> None:
    cases = golden["scalesim_3_0_0"]["cases"]
    for dataflow, rows, columns, m, n, k, cycles in cases:
        engine = Systolic(rows, columns, dataflow)
        assert engine.run(Gemm(m, n, k)).cycles == cycles, (dataflow, rows, columns, m, n, k)


def test_scalesim_bert_base_layer_to_the_cycle() -> None:
    # SCALE-Sim 3.0.0, weight stationary, 128 x 128: the golden file's 128 x 768 x 768 case.
    assert Systolic().run(Gemm(128, 768, 768)).cycles == 18359


def test_scalesim_layerwise_n_of_m_to_the_cycle(golden: dict[str, Any]) -> None:
    for row in golden["scalesim_3_0_0"]["sparse_layerwise_NM"]:
        dataflow, rows, columns, m, n, k, ratio, cycles, *_, metadata = row
        keep, group = map(int, ratio.split(":"))
        mask = pattern(n, k, keep, group)
        timing = SystolicNM(rows, columns, dataflow, group=group).run(Gemm(m, n, k, mask))
        assert timing.cycles == cycles
        assert mask.sum() * np.ceil(np.log2(group)) / 32 == metadata


def test_stonne_output_stationary_mesh_to_the_cycle(golden: dict[str, Any]) -> None:
    for rows, columns, m, n, k, cycles in golden["stonne_os_mesh"]["cases"]:
        engine = Systolic(rows, columns, "os", "stonne")
        assert engine.run(Gemm(m, n, k)).cycles == cycles


def read_mask(path: Path, rows: int) -> BoolArray:
    digits = np.frombuffer("".join(path.read_text().split()).encode(), np.uint8)
    bits: BoolArray = (digits == ord("1")).reshape(rows, -1)
    return bits


def test_eyeriss_v2_pe_with_real_masks_to_the_cycle(
    golden: dict[str, Any], golden_folder: Path
) -> None:
    folder = golden_folder / "eyeriss_v2_pe_masks"
    for name, (m, e, f, c, _, _, cycles) in golden["eyeriss_v2_pe"]["layers"].items():
        active = read_mask(folder / f"{name}_iacts.txt", e * f)
        weight = read_mask(folder / f"{name}_weights.txt", m)
        assert ChannelProduct().run(Gemm(e * f, m, c, weight, active)).cycles == cycles


def c_library_numbers() -> Iterator[int]:
    """What `rand()` of glibc gives without a seed: an additive feedback generator."""
    state = [1]
    for _ in range(30):
        state.append(16807 * state[-1] % (2**31 - 1))
    state += state[:3]
    for i in itertools.count(len(state)):
        state.append((state[i - 31] + state[i - 3]) % 2**32)
        if i >= 344:
            yield state[i] >> 1


def stonne_mask(rows: int, columns: int, zeros: int) -> BoolArray:
    """The mask that STONNE draws for a run: unseeded, and at least three non-zeros in a row."""
    numbers = c_library_numbers()
    mask = np.zeros((rows, columns), bool)
    for place in np.ndindex(mask.shape):
        mask[place] = next(numbers) % 100 > zeros
        if mask[place]:
            next(numbers)  # the value
    for row in mask:
        missing = np.flatnonzero(~row[:3])[: max(3 - np.count_nonzero(row), 0)]
        row[missing] = True
    return mask


def test_stonne_sigma_to_the_cycle(golden: dict[str, Any]) -> None:
    # With its own masks and its ordering of the rows at compile time (`-optimize=1`).
    cases = golden["stonne_sigma_sparsegemm"]["cases"]
    for m, n, k, multipliers, bandwidth, weight_zeros, _, cycles in cases:
        mask = stonne_mask(m, k, weight_zeros)
        assert Sigma(multipliers, bandwidth).run(Gemm(n, m, k, mask)).cycles == cycles


def test_eie_load_balance_and_time(golden: dict[str, Any]) -> None:
    data = golden["eie_64pe_800mhz_us"]
    balance_errors, time_errors = [], []
    for i, (k, n) in enumerate(data["dims_in_out"]):
        weight = random_mask(n, k, data["weight_density_BACKGROUND"][i])
        active = random_mask(1, k, data["act_density_BACKGROUND"][i], 1)
        engine, gemm = CscFifo(), Gemm(1, n, k, weight, active)
        cycles = engine.run(gemm).cycles
        work = (engine.entries(gemm) * active.T).sum() / engine.elements
        published = data["theoretical"][i] / data["actual"][i]
        balance_errors.append(abs(work / cycles / published - 1))
        time_errors.append(abs(cycles / 800 / data["actual"][i] - 1))
    assert np.mean(balance_errors) < 0.05, balance_errors
    assert np.mean(time_errors) < 0.10, time_errors


def test_dstc_curve_untuned(golden: dict[str, Any]) -> None:
    latency = golden["dstc_fig21"]["latency"]
    engine = OuterProduct()
    errors = []
    size = 512  # the ratio to dense does not depend on the size
    dense = engine.run(Gemm(size, size, size)).cycles
    for activation, by_weight in latency.items():
        for weight, published in by_weight.items():
            gemm = Gemm(
                size,
                size,
                size,
                random_mask(size, size, float(weight), 2),
                random_mask(size, size, float(activation), 3),
            )
            ratio = engine.run(gemm).cycles / dense
            errors.append(abs(ratio / (published / latency["1.0"]["1.0"]) - 1))
    assert np.mean(errors) < 0.06, errors


def test_dstc_cycles_of_sparseloop_which_nothing_was_tuned_to(golden: dict[str, Any]) -> None:
    # Sparseloop's DSTC as it describes it: four units of 16 x 16, 2,048 accumulators each, behind
    # a shared memory of 42 bytes a cycle.
    data = golden["sparseloop_fig15"]
    index = data["cols"].index("DSTC")
    engine = OuterProduct(4, 64, 32, 16, 16, feed=42)
    errors, naive = [], []
    for layer in (key for key in data if key.startswith("M")):
        sizes = {part[0]: int(part[1:]) for part in layer.split("-") if part[0] in "MKN"}
        m, n, k, active = sizes["N"], sizes["M"], sizes["K"], float(layer.split("IAD")[1])
        for density, rows in data[layer].items():
            weight = random_mask(n, k, float(density), 1)
            gemm = Gemm(m, n, k, weight, random_mask(m, k, active, 2))
            errors.append(abs(engine.run(gemm).cycles / rows[index][0] - 1))
            naive.append(abs(m * n * k / 1024 * active * float(density) / rows[index][0] - 1))
    assert max(errors) < 0.07, errors
    assert np.mean(errors) < 0.03, errors
    assert np.mean(naive) > 0.4


@pytest.mark.parametrize("column", ["TC", "STC", "STC_flexible", "STC_flexible_RLE"])
def test_sparseloop_cycles(golden: dict[str, Any], column: str) -> None:
    data = golden["sparseloop_fig15"]
    index = data["cols"].index(column)
    groups = {"TC": (), "STC": (4,)}.get(column, (4, 6, 8))
    engine = TensorCore(feed=42, slots=2, groups=groups, run_length=column.endswith("RLE"))
    for layer in (key for key in data if key.startswith("M")):
        sizes = {part[0]: int(part[1:]) for part in layer.split("-") if part[0] in "MKN"}
        for density, rows in data[layer].items():
            group = round(2 / float(density))
            mask = pattern(sizes["M"], sizes["K"], 2, group) if group > 2 else None
            gemm = Gemm(sizes["N"], sizes["M"], sizes["K"], mask)
            assert engine.run(gemm).cycles == pytest.approx(rows[index][0], abs=1)


def test_sparseloop_dual_compressed_within_three_percent(golden: dict[str, Any]) -> None:
    data = golden["sparseloop_fig15"]
    index = data["cols"].index("STC_flex_dual_RLE")
    engine = TensorCore(feed=42, slots=2, groups=(4, 6, 8), run_length=True, dual=True)
    for layer in (key for key in data if key.startswith("M")):
        sizes = {part[0]: int(part[1:]) for part in layer.split("-") if part[0] in "MKN"}
        active = random_mask(sizes["N"], sizes["K"], float(layer.split("IAD")[1]))
        for density, rows in data[layer].items():
            group = round(2 / float(density))
            mask = pattern(sizes["M"], sizes["K"], 2, group) if group > 2 else None
            gemm = Gemm(sizes["N"], sizes["M"], sizes["K"], mask, active)
            assert engine.run(gemm).cycles == pytest.approx(rows[index][0], rel=0.03)
