"""Invariants that every engine keeps, whatever the masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefx.backends.accelerator.engines.bank_balanced import BankBalanced
from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Timing
from sparsefx.backends.accelerator.engines.cartesian import Cartesian
from sparsefx.backends.accelerator.engines.channel_product import ChannelProduct
from sparsefx.backends.accelerator.engines.csc_fifo import CscFifo
from sparsefx.backends.accelerator.engines.lock_step import LockStep
from sparsefx.backends.accelerator.engines.outer_product import OuterProduct
from sparsefx.backends.accelerator.engines.sigma import Sigma, pack_rows
from sparsefx.backends.accelerator.engines.systolic import Systolic
from sparsefx.backends.accelerator.engines.systolic_nm import SystolicNM
from sparsefx.backends.accelerator.engines.tensor_core import TensorCore
from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.errors import TargetError

ENGINES: list[Engine] = [
    Systolic(8, 8),
    Systolic(8, 4, "os"),
    Systolic(4, 8, "is"),
    SystolicNM(8, 8),
    TensorCore(64, 0, 2, (4, 8)),
    TensorCore(64, 16),
    LockStep(8, 2, 16),
    LockStep(8, 2, 16, look_ahead=2),
    BankBalanced(8, 2, 16, 4),
    CscFifo(8, 2),
    ChannelProduct(2, 3),
    ChannelProduct(1, 1, 2),
    OuterProduct(2, 8, 8, 2, 4),
    OuterProduct(4, 16, 8, 4, 4, feed=6),
    Cartesian(4, 2, 2, 4),
    Sigma(16, 16),
    Sigma(16, 4, "as-given"),
]


@st.composite
def gemms(draw: st.DrawFn) -> Gemm:
    m, n, k = (draw(st.integers(1, 40)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weight = rng.random((n, k)) < draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    active = rng.random((m, k)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Gemm(m, n, k, weight, active if draw(st.booleans()) else None)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@settings(max_examples=25, deadline=None)
@given(gemm=gemms())
def test_executed_macs_are_the_real_ones_and_never_beat_the_peak(
    engine: Engine, gemm: Gemm
) -> None:
    timing = engine.run(gemm)
    real = gemm.macs(engine.skips)
    runs_dense = isinstance(engine, SystolicNM | TensorCore) and timing.macs == gemm.dense_macs
    assert timing.macs == real or runs_dense  # weights that fit no pattern
    assert gemm.effectual_macs <= timing.macs <= gemm.dense_macs
    assert timing.cycles * engine.peak >= timing.macs
    assert 0 <= timing.fill <= timing.cycles


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@settings(max_examples=15, deadline=None)
@given(gemm=gemms())
def test_a_full_mask_costs_what_no_mask_costs(engine: Engine, gemm: Gemm) -> None:
    full = replace(
        gemm,
        weight=np.ones((gemm.n, gemm.k), bool),
        activation=np.ones((gemm.m, gemm.k), bool),
    )
    dense = replace(gemm, weight=None, activation=None)
    assert engine.run(full).cycles == engine.run(dense).cycles


# Sigma packs whole rows in order: a shorter row can meet a worse neighbour.
@pytest.mark.parametrize("engine", [e for e in ENGINES if not isinstance(e, Sigma)], ids=repr)
@settings(max_examples=15, deadline=None)
@given(gemm=gemms())
def test_fewer_weights_are_not_slower(engine: Engine, gemm: Gemm) -> None:
    dense = replace(gemm, weight=None)
    assert engine.run(gemm).cycles <= engine.run(dense).cycles


@settings(max_examples=60, deadline=None)
@given(gemm=gemms(), ahead=st.integers(0, 4))
def test_more_look_ahead_is_never_slower(gemm: Gemm, ahead: int) -> None:
    engine = LockStep(8, 2, 8, ahead)
    assert engine.run(gemm).cycles >= replace(engine, look_ahead=ahead + 1).run(gemm).cycles


@settings(max_examples=40, deadline=None)
@given(gemm=gemms(), depth=st.integers(1, 6))
def test_deeper_queues_are_never_slower(gemm: Gemm, depth: int) -> None:
    assert CscFifo(8, depth).run(gemm).cycles >= CscFifo(8, depth + 1).run(gemm).cycles


@settings(max_examples=60, deadline=None)
@given(gemm=gemms(), depth=st.integers(1, 6))
def test_queues_follow_their_equations_one_by_one(gemm: Gemm, depth: int) -> None:
    engine = CscFifo(8, depth)
    active = np.ones((gemm.m, gemm.k), bool) if gemm.activation is None else gemm.activation
    entries = np.maximum(engine.entries(gemm), 1)
    total = 0
    for row in active:
        taken: list[int] = []
        done, sent = np.zeros(8, np.int64), -1
        for column in np.flatnonzero(row):
            sent = max(sent + 1, taken[-depth] if len(taken) >= depth else 0)
            begun = np.maximum(sent, done)
            taken.append(int(begun.max()))
            done = begun + entries[column]
        total += int(done.max())
    assert engine.run(gemm).cycles == total


@settings(max_examples=40, deadline=None)
@given(gemm=gemms(), feed=st.integers(1, 64))
def test_a_wider_feed_is_never_slower(gemm: Gemm, feed: int) -> None:
    slow, fast = TensorCore(64, feed, 2, (4,)), TensorCore(64, feed + 1, 2, (4,))
    assert slow.run(gemm).cycles >= fast.run(gemm).cycles


@settings(max_examples=40, deadline=None)
@given(gemm=gemms())
def test_unlimited_look_ahead_waits_for_the_heaviest_row_only(gemm: Gemm) -> None:
    engine = LockStep(40, 1, 4, look_ahead=100)
    assert gemm.weight is not None
    heaviest = int(np.count_nonzero(gemm.weight, axis=1).max())
    assert engine.run(gemm).cycles == heaviest * gemm.m


def test_lock_step_waits_2_26_times_the_mean_on_a_random_95_percent_mask() -> None:
    mask = np.random.default_rng(0).random((3072, 768)) < 0.05
    engine = LockStep(32, 1, 64)
    timing = engine.run(Gemm(1, 3072, 768, mask))
    mean = mask.sum() / 32
    assert timing.cycles / mean == pytest.approx(2.26, rel=0.02)


def test_a_bank_balanced_mask_makes_lock_step_perfect() -> None:
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((3072, 12, 64)), axis=2)
    mask = (order < 4).reshape(3072, 768)
    engine = LockStep(32, 1, 64)
    timing = engine.run(Gemm(1, 3072, 768, mask))
    assert timing.cycles * 32 == mask.sum()
    assert BankBalanced(32, 1, 64).run(Gemm(1, 3072, 768, mask)).cycles == timing.cycles


def test_two_of_four_hardware_runs_other_patterns_dense() -> None:
    engine = SystolicNM(8, 8, group=4, slots=2)
    mask = np.ones((8, 64), bool)
    mask[:, 1::4] = False  # 3 of 4
    assert engine.run(Gemm(8, 8, 64, mask)).cycles == engine.run(Gemm(8, 8, 64)).cycles
    mask[:, 2::4] = False  # 2 of 4
    assert engine.run(Gemm(8, 8, 64, mask)).cycles < engine.run(Gemm(8, 8, 64)).cycles


def test_a_row_longer_than_the_multipliers_is_cut() -> None:
    # The middle piece holds 7 new values and the partial sum that comes back, the last one 5.
    assert pack_rows([20], 8) == [[8], [8], [6]]
    assert pack_rows([16, 1], 8) == [[8], [8], [2], [1]]


def test_rows_in_order_of_length_fill_more_of_sigma() -> None:
    rng = np.random.default_rng(0)
    gemm = Gemm(64, 64, 64, rng.random((64, 64)) < 0.5)
    assert Sigma(order="largest-first").run(gemm).cycles < Sigma(order="as-given").run(gemm).cycles


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the weight mask is \[3, 4\], the GEMM needs \[4, 4\]"):
        Gemm(4, 4, 4, np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="positive sizes"):
        Gemm(0, 4, 4)


@pytest.mark.parametrize("name", ["peak", "row_step", "column_step", "k_step"])
def test_an_array_of_nothing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LockStep, name, 0)
    with pytest.raises(TargetError, match=rf"engine LockStep at lock-step-32: its {name} is 0"):
        _ = Machine(load_architecture("lock-step-32")).engine


def test_an_engine_that_fails_or_lies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LockStep, gemm: Gemm) -> Timing:
        raise ZeroDivisionError("division by zero")

    machine = Machine(load_architecture("lock-step-32"))
    monkeypatch.setattr(LockStep, "run", fail)
    with pytest.raises(TargetError, match=r"engine LockStep, product %x.*ZeroDivisionError") as e:
        machine.timed(("x",), lambda: Gemm(2, 3, 4))
    assert str(e.value.where).startswith(__file__)
    monkeypatch.setattr(LockStep, "run", lambda self, gemm: None)
    with pytest.raises(TargetError, match=r"run\(\) returned None\n  hint: return Timing"):
        machine.timed(("x",), lambda: Gemm(2, 3, 4))
    monkeypatch.setattr(LockStep, "run", lambda self, gemm: Timing(0, 24))
    with pytest.raises(TargetError, match=r"24 multiplications in 0 cycles"):
        machine.timed(("x",), lambda: Gemm(2, 3, 4))
    half = np.arange(12).reshape(3, 4) % 2 == 0
    for macs in (11, 25):  # 12 without the zeros of the weights, 24 with all
        monkeypatch.setattr(LockStep, "run", lambda self, gemm, macs=macs: Timing(100, macs))
        with pytest.raises(TargetError, match=rf"it counts {macs} .*\(weight\) .* has 12"):
            machine.timed(("x",), lambda: Gemm(2, 3, 4, half))
