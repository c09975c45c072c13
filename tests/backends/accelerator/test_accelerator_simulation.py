"""Invariants of the tile-level simulation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefx.backends.accelerator.engines.tensor_core import TensorCore
from sparsefx.backends.accelerator.hardware.archfile import load_architecture, preset_names
from sparsefx.backends.accelerator.hardware.architecture import perturbed, quantities
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.report.reasons import reasons
from sparsefx.backends.accelerator.simulation.energy import LEVELS
from sparsefx.backends.accelerator.simulation.roofline import roofline
from sparsefx.backends.accelerator.simulation.tile_level import simulate
from sparsefx.backends.accelerator.tiling.mapper import choose_mapping, fits, mapping_options
from sparsefx.backends.accelerator.tiling.plan import plan_matmul
from sparsefx.backends.accelerator.workload.bert import EncoderSize, encoder_workload
from sparsefx.backends.accelerator.workload.operations import (
    HostOp,
    MatmulOp,
    VectorOp,
    Workload,
)
from sparsefx.backends.formats.encoding import FormatSize
from sparsefx.errors import TargetError

SMALL = EncoderSize(layers=1, hidden=128, feed_forward=256, heads=2)

workloads = st.builds(
    lambda batch, tokens, ratio, zeros, seed: encoder_workload(
        SMALL, batch=batch, tokens=tokens, ratio=ratio, zeros=zeros, seed=seed
    ),
    st.integers(1, 3),
    st.sampled_from([8, 16, 33]),
    st.sampled_from([1.0, 2.0, 8.0]),
    st.sampled_from(["random", "balanced", "n-of-m", "block"]),
    st.integers(0, 100),
)


def test_the_launch_of_vector_work_is_no_vector_work() -> None:
    arch = load_architecture("dstc")
    run = simulate(encoder_workload(SMALL, tokens=16), arch)
    vector = [task for task in run.tasks if task.kind == "vector"]
    launches = sum(task.launch for task in vector)
    assert 0 < launches <= sum(task.cycles for task in vector)
    assert run.waterfall["launch and host"] == pytest.approx(launches, rel=0.05)
    assert run.waterfall["vector unit"] <= sum(task.cycles for task in vector) - launches + 1e-6
    assert sum(run.waterfall.values()) == pytest.approx(run.cycles)
    assert "launches" in reasons(run)[0]


@pytest.mark.parametrize("preset", preset_names())
@settings(max_examples=4, deadline=None)
@given(workload=workloads)
def test_invariants(preset: str, workload: Workload) -> None:
    arch = load_architecture(preset)
    run = simulate(workload, arch)
    assert roofline(workload, arch).cycles <= run.cycles * (1 + 1e-9)
    assert 0 < run.utilisation <= 1
    assert sum(run.waterfall.values()) == pytest.approx(run.cycles, rel=1e-6)
    assert min(run.waterfall.values()) >= -1e-6 * run.cycles
    by_op = [sum(op.energy[level] for op in run.ops) for level in LEVELS]
    assert sum(by_op) == pytest.approx(sum(run.energy.values()) - _leakage(run.seconds, arch))
    counts = [op.macs for op in run.ops if op.macs]
    real = [op.gemm.macs(run.machine.engine.skips) * op.copies for op in workload.matmuls]
    if not isinstance(run.machine.engine, TensorCore):  # runs dense what fits no pattern
        assert [macs.executed for macs in counts] == real
    for least, macs, op in zip(real, counts, workload.matmuls, strict=True):
        assert least <= macs.executed <= macs.dense == op.dense_macs
    if not run.schedule.resident:
        kept = sum(
            int(op.nonzero.sum()) if op.nonzero is not None else op.n * op.k
            for op in workload.matmuls
            if op.has_weights
        )
        assert run.dram_bytes >= kept * run.machine.value_bytes


@settings(max_examples=5, deadline=None)
@given(workload=workloads)
@pytest.mark.parametrize("preset", ["anton", "eie-64", "tensor-core-2-4", "scalesim-compat"])
def test_weights_that_do_not_fit_are_moved_whole(preset: str, workload: Workload) -> None:
    arch = load_architecture(preset)
    largest = len(arch.sram) - 1
    small = perturbed(arch, f"sram.{largest}.capacity", 60_000 / arch.capacity(arch.sram[largest]))
    run = simulate(workload, small)
    kept = [
        op.n * op.k if op.nonzero is None else int(op.nonzero.sum())
        for op in workload.matmuls
        if op.has_weights
    ]
    if sum(kept) > 60_000:
        assert not run.schedule.resident
        assert run.dram_bytes >= sum(kept) * run.machine.value_bytes


def _leakage(seconds: float, arch: object) -> float:
    watts: float = arch.energy.leakage.value  # type: ignore[attr-defined]  # an Architecture
    return watts * seconds * 1e12


@settings(max_examples=2, deadline=None)
@given(workload=workloads)
@pytest.mark.parametrize("preset", preset_names())
def test_faster_parts_are_not_slower_but_for_the_choice_of_tiles(
    preset: str, workload: Workload
) -> None:
    # Another bandwidth may lead to other tiles, which the mapper ranks by an estimate.
    arch = load_architecture(preset)
    cycles = simulate(workload, arch).cycles
    rates = [path for path, _ in quantities(arch) if path.endswith(("bandwidth", "throughput"))]
    for path in rates:
        if not path.startswith("engine"):
            assert simulate(workload, perturbed(arch, path, 1.5)).cycles <= cycles * 1.005, path


@pytest.mark.parametrize("preset", preset_names())
def test_fewer_weights_are_not_slower(preset: str) -> None:
    arch = load_architecture(preset)
    dense = encoder_workload(EncoderSize(1, 192, 776, 3), tokens=17)
    draws = {op.name: np.random.default_rng(0).random((op.n, op.k)) for op in dense.matmuls}
    before = simulate(dense, arch)
    for density in (0.5, 0.1, 0.02):
        ops = tuple(
            replace(op, mask=draws[op.name] < density)
            if isinstance(op, MatmulOp) and op.has_weights
            else op
            for op in dense.ops
        )
        after = simulate(replace(dense, ops=ops), arch)
        assert after.cycles <= before.cycles * 1.02, density
        assert sum(after.energy.values()) <= sum(before.energy.values()) * 1.02, density
        before = after


@pytest.mark.parametrize("path", ["utilisation", "clock"])
def test_a_faster_array_is_not_slower_whatever_tiles_it_leads_to(path: str) -> None:
    arch = load_architecture("anton")
    workload = encoder_workload(EncoderSize(2, 384, 1536, 12), tokens=64)
    seconds = [
        simulate(workload, perturbed(arch, path, factor)).seconds for factor in (0.8, 1, 1.2)
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_tiles_along_k_are_not_taken_for_work_that_cores_share() -> None:
    # 6 row groups x 8 activation tiles are 48 tasks of one pass for 32 cores, however k is cut.
    op = MatmulOp("down", 64, 384, 1536, ("",))
    run = simulate(Workload("w", (op,), 1, 64), load_architecture("anton"))
    passes = [task.cycles for task in run.tasks if task.kind == "compute"]
    assert len(passes) == 48
    assert max(passes) == pytest.approx(1536 / 0.616, rel=1e-3)


@settings(max_examples=5, deadline=None)
@given(workload=workloads)
@pytest.mark.parametrize("preset", ["anton", "scnn", "tensor-core-2-4"])
def test_larger_buffers_are_not_slower_but_for_the_choice_of_tiles(
    preset: str, workload: Workload
) -> None:
    # Larger buffers allow other tiles, which the mapper ranks by an estimate: up to 2 % are lost.
    arch = load_architecture(preset)
    larger = perturbed(arch, "sram.0.capacity", 2)
    assert simulate(workload, larger).cycles <= simulate(workload, arch).cycles * 1.02


def test_no_task_begins_before_what_it_needs_and_what_its_resource_does() -> None:
    run = simulate(encoder_workload(SMALL, batch=2, tokens=16), load_architecture("anton"))
    ends: dict[str | int, float] = {}
    for task in run.tasks:
        assert all(run.tasks[number].end <= task.start + 1e-6 for number in task.needs)
        assert ends.get(task.resource, 0.0) <= task.start + 1e-6
        ends[task.resource] = task.end


def test_waiting_is_laid_at_the_door_of_what_ran_meanwhile() -> None:
    # Short products behind 2 us launches: cores wait for loads that wait for launches.
    run = simulate(encoder_workload(SMALL, tokens=16), load_architecture("a100-fp16"))
    launches = sum(t.cycles if t.kind == "launch" else t.launch for t in run.tasks)
    assert run.waterfall["launch and host"] == pytest.approx(launches, rel=0.02)
    assert run.waterfall["DRAM"] < 0.1 * run.cycles


def test_zeros_stored_dense_are_values_and_not_metadata() -> None:
    workload = encoder_workload(SMALL, tokens=16, ratio=4)
    run = simulate(workload, load_architecture("tensor-core-int8"))
    sizes = [plan.stored_bytes for plan in run.schedule.plans.values()]
    assert sum(values for values, _ in sizes) == sum(
        op.n * op.k for op in workload.matmuls if op.has_weights
    )
    assert sum(metadata for _, metadata in sizes) == 0


def test_a_dense_mask_costs_what_no_mask_costs() -> None:
    dense = encoder_workload(SMALL, tokens=16)
    ops = tuple(
        replace(op, mask=np.ones((op.n, op.k), bool))
        if isinstance(op, MatmulOp) and op.copies == 1
        else op
        for op in dense.ops
    )
    arch = load_architecture("lock-step-32")
    masked = simulate(replace(dense, ops=ops), arch)
    plain = simulate(dense, arch)
    assert masked.utilisation == pytest.approx(plain.utilisation, rel=0.02)
    assert [op.macs for op in masked.ops] == [op.macs for op in plain.ops]


def test_a_fully_pruned_layer_takes_no_products_and_is_named() -> None:
    ops = (MatmulOp("dead", 8, 64, 64, ("",), mask=np.zeros((64, 64), bool)),)
    run = simulate(Workload("w", ops, 1, 8), load_architecture("anton"))
    assert run.ops[0].macs is not None
    assert run.ops[0].macs.executed == 0
    assert any("all weights are zero in dead" in note for note in run.notes)


@pytest.mark.parametrize(
    ("preset", "share", "smallest"),
    [("anton", 1e-3, "8 x 64 x 64"), ("tensor-core-int8", 1 / 16, "64 x 64 x 64")],
)
def test_an_architecture_that_cannot_hold_a_tile_is_refused(
    preset: str, share: float, smallest: str
) -> None:
    tiny = perturbed(load_architecture(preset), "sram.0.capacity", share)
    with pytest.raises(TargetError, match=f"the smallest tile, {smallest}, needs") as caught:
        simulate(encoder_workload(SMALL, tokens=64), tiny)
    needed, there = re.findall(r"needs ([\d,]+) bytes; a core has ([\d,]+)", str(caught.value))[0]
    assert int(needed.replace(",", "")) > int(there.replace(",", ""))


def test_masks_that_do_not_match_weights_are_refused() -> None:
    weight = np.ones((4, 4), np.int8)
    with pytest.raises(ValueError, match=r"drops weights that are not zero"):
        MatmulOp("a", 1, 4, 4, ("",), weight=weight, mask=np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match=r"the weights are \[4, 4\], the product needs \[4, 5\]"):
        MatmulOp("a", 1, 4, 5, ("",), weight=weight)
    with pytest.raises(ValueError, match=r"the mask is \[4, 4\], the product needs \[4, 5\]"):
        MatmulOp("a", 1, 4, 5, ("",), mask=weight != 0)


def test_an_empty_product_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a: a product of 1 x \[4, 8\] by \[0, 8\] is empty"):
        MatmulOp("a", 4, 0, 8, ("",))


def test_a_host_fallback_costs_the_way_there_and_back() -> None:
    op = HostOp("odd", "aten.sort", 1000, ("",), "the machine has no sort")
    run = simulate(Workload("w", (op,), 1, 1), load_architecture("anton"))
    host = load_architecture("anton").host
    assert host is not None
    assert run.seconds >= 2 * host.latency.value
    assert run.waterfall["launch and host"] > 0
    assert any(re.search(r"1 operations run on the host.*odd \(2\d\.\d us\)", n) for n in run.notes)


def test_without_a_host_what_needs_one_is_listed() -> None:
    ops = tuple(HostOp(n, "aten.sort", 10, ("",), "the machine has no sort") for n in ("a", "b"))
    alone = replace(load_architecture("anton"), host=None)
    with pytest.raises(TargetError, match=r"(?s)2 operations need a host.*%a: the.*%b: the") as e:
        simulate(Workload("w", ops, 1, 1), alone)
    assert "give the architecture a host" in str(e.value)


@pytest.mark.parametrize("preset", ["anton", "moffett-s4-like", "eyeriss-v2-pe"])
def test_tiles_fit_every_product_that_shares_them(preset: str) -> None:
    machine = Machine(load_architecture(preset))
    for share in (0.23, 0.25, 0.27):
        mask = np.random.default_rng(0).random((768, 768)) < share
        op = MatmulOp("linear", 128, 768, 768, ("",), mask=mask)
        tile = choose_mapping(op, machine)
        assert fits(op, machine, (tile.tile_m, tile.tile_n, tile.tile_k))
        options = mapping_options(op, machine)
        assert len({(each.tile_m, each.tile_n, each.tile_k) for each in options}) == len(options)


@pytest.mark.parametrize("preset", ["anton", "lock-step-32", "a100-fp16", "tpu-v4-like"])
def test_the_mapper_prices_a_product_as_the_tiles_are_priced(preset: str) -> None:
    # Whole tiles, and weights that stay on chip: nothing is estimated.
    machine = Machine(load_architecture(preset))
    for op in (
        MatmulOp("linear", 256, 1024, 1024, ("",)),
        MatmulOp("scores", 128, 128, 64, ("",), copies=32, stationary=False),
    ):
        for mapping in mapping_options(op, machine):
            plan = replace(plan_matmul(op, machine, streamed=False), mapping=mapping)
            plan.rows = tuple((n, n + mapping.tile_n) for n in range(0, op.n, mapping.tile_n))
            size = machine.form.value_width * mapping.tile_n * op.k
            plan.sizes = (FormatSize(size),) * len(plan.rows) if op.has_weights else ()
            tile = plan.cost(0, 0, mapping.tile_m).cycles
            tasks = op.copies * len(plan.rows) * (op.m // mapping.tile_m)
            if op.n % mapping.tile_n == op.m % mapping.tile_m == op.k % mapping.tile_k == 0:
                assert mapping.cycles == pytest.approx(-(-tasks // machine.cores) * tile)


def test_attention_is_priced_as_its_copies_are_shared_out() -> None:
    workload, arch = encoder_workload(SMALL, tokens=16), load_architecture("scalesim-compat")
    two, eight = (simulate(workload, perturbed(arch, "cores", count)) for count in (2, 8))
    assert eight.cycles <= two.cycles
    for op in eight.ops:
        if op.name in ("layer0.scores", "layer0.context"):
            assert f"about {op.busy / 2:,.0f} cycles" in op.mapping  # two heads, a core each


@pytest.mark.parametrize("preset", ["eie-64", "lock-step-32", "moffett-s4-like"])
def test_weights_stay_on_chip_exactly_if_their_groups_fit(preset: str) -> None:
    arch = load_architecture(preset)
    workload = encoder_workload(SMALL, tokens=16, ratio=4, zeros="random")
    outer = len(arch.sram) - 1
    used = simulate(workload, arch)
    stored = sum(sum(plan.stored_bytes) for plan in used.schedule.plans.values())
    active = 2 * max(op.out_elements for op in workload.ops) * used.machine.value_bytes
    for room, stays in ((stored + active + 1, True), (stored + active - 1, False)):
        factor = room / arch.capacity(arch.sram[outer])
        run = simulate(workload, perturbed(arch, f"sram.{outer}.capacity", factor))
        assert run.schedule.resident is stays
        moved = sum(t.weights + t.metadata for t in run.schedule.traffic)
        plans = run.schedule.plans.values()
        streamed = sum(sum(plan.stored_bytes) * plan.weight_passes for plan in plans)
        assert moved == pytest.approx(0 if stays else streamed)


@pytest.mark.parametrize("preset", ["anton", "lock-step-32", "a100-2-4", "tensor-core-flexible"])
def test_tiles_do_not_cut_through_banks_or_groups(preset: str) -> None:
    machine = Machine(load_architecture(preset))
    step = machine.engine.k_step
    assert step > 1
    for k in (768, 1000, 1536):
        op = MatmulOp("linear", 64, 768, k, ("",))
        assert all(m.tile_k % step == 0 or m.tile_k == k for m in mapping_options(op, machine))


def test_what_was_timed_once_is_timed_alike() -> None:
    arch = load_architecture("eie-64")
    workload = encoder_workload(SMALL, tokens=16, ratio=4, zeros="random")
    base = simulate(workload, arch)
    for path in ("dram.bandwidth", "clock", "sram.0.capacity", "engine.numbers.elements"):
        moved = perturbed(arch, path, 0.8)
        again = simulate(workload, moved, like=base)
        assert again.cycles == simulate(workload, moved).cycles
    other = encoder_workload(SMALL, tokens=16, ratio=8, zeros="random")  # the same names
    assert simulate(other, arch, like=base).cycles == simulate(other, arch).cycles != base.cycles


@pytest.mark.parametrize("preset", ["eie-64", "sigma-128", "lock-step-32", "scnn"])
def test_twice_the_cores_are_not_slower(preset: str) -> None:
    # An array that takes as long for 64 rows as for 256 must not be given 64.
    arch = load_architecture(preset)
    size = EncoderSize(layers=1, hidden=256, feed_forward=512, heads=4)
    workload = encoder_workload(size, batch=2, tokens=24, ratio=8, zeros="random")
    assert simulate(workload, perturbed(arch, "cores", 2)).cycles < simulate(workload, arch).cycles


def test_weights_that_are_all_zero_stay_on_chip_too() -> None:
    ops = (MatmulOp("dead", 8, 64, 64, ("",), mask=np.zeros((64, 64), bool)),)
    run = simulate(Workload("w", ops, 1, 8), load_architecture("tensor-core-2-4"))
    assert run.schedule.resident
    assert run.ops[0].traffic.weights == run.ops[0].traffic.metadata == 0


def _moved(ops: tuple[MatmulOp | VectorOp, ...], preset: str) -> list[tuple[float, float]]:
    """Activations that each operation brings in and takes out, in values."""
    arch = load_architecture(preset)
    size = Machine(arch).value_bytes
    run = simulate(Workload("w", ops, 1, 64), arch)
    return [(op.traffic.activations_in / size, op.traffic.activations_out / size) for op in run.ops]


def test_what_a_vector_operation_is_given_is_loaded_and_its_outcome_stored() -> None:
    product = MatmulOp("product", 64, 64, 64, ("scaled",))
    scaled = VectorOp("scaled", "mul", 64 * 64, ("",))
    squashed = VectorOp("squashed", "tanh", 64 * 64, ("product",))
    count = 64 * 64
    assert _moved((scaled, product, squashed), "anton") == [(count, 0), (0, 0), (0, count)]


def test_what_has_no_room_goes_out_and_comes_back_to_vector_operations_too() -> None:
    room = Machine(load_architecture("tensor-core-int8")).architecture
    chunks = 16  # of which each has to lie there at once
    rows = chunks * (round(room.capacity(room.outermost("activations"))) // 64 + 64)
    count = rows * 64
    first = MatmulOp("first", rows, 64, 64, ("",))
    squashed = VectorOp("squashed", "tanh", count, ("first",))
    shifted = VectorOp("shifted", "add", count, ("squashed",))
    second = MatmulOp("second", rows, 64, 64, ("shifted",))
    moved = _moved((first, squashed, shifted, second), "tensor-core-int8")
    assert moved == [(count, count), (count, 0), (0, count), (count, count)]
