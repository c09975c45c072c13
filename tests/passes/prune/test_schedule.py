"""The ramp: the figures that the papers' code gives, and the window of updates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.passes.prune.schedule import Schedule
from sparsefx.recipe import Recipe
from sparsefx.recipe.amounts import parse_pipeline

PRUNE_OFA = Schedule(0.9, begin=0, end=50_000, frequency=1_000, update_end=80_000)


@pytest.mark.parametrize(
    ("step", "sparsity"),
    [(0, 0.0), (1_000, 0.053), (5_000, 0.244), (10_000, 0.439), (25_000, 0.788), (40_000, 0.893)],
)
def test_prune_ofa_ramp(step: int, sparsity: float) -> None:
    assert PRUNE_OFA.sparsity(step) == pytest.approx(sparsity, abs=5.1e-4)


def test_prune_ofa_chooses_masks_for_thirty_thousand_steps_after_the_ramp() -> None:
    updates = [step for step in range(100_000) if PRUNE_OFA.updates(step)]
    assert updates == list(range(0, 80_001, 1_000))
    assert {PRUNE_OFA.sparsity(step) for step in updates if step >= 50_000} == {0.9}


def test_sparsebert_prunes_until_the_end() -> None:
    """The recipe's ramp on MRPC, beside the released code's staircase of a hundred prunings."""
    text = Recipe.shipped("sparsebert").stage("student").pipeline[1]
    (item,) = parse_pipeline([text], 84_612).passes
    assert isinstance(item, MagnitudePrune)
    updates = [step for step in range(1, 84_613) if item.schedule.updates(step)]
    assert updates == [*(846 * k for k in range(1, 101)), 84_612]
    staircase = [0.95 + (0.0 - 0.95) * (1 - k / 100) ** 3 for k in range(1, 101)]
    found = [item.schedule.sparsity(step) for step in updates[:-1]]
    assert found == pytest.approx(staircase, abs=1e-4)
    assert item.schedule.sparsity(84_600) == pytest.approx(0.95, abs=1e-9)


def test_one_shot_is_one_update() -> None:
    schedule = Schedule(0.8, begin=7, end=7)
    assert [step for step in range(20) if schedule.updates(step)] == [7]
    assert (schedule.sparsity(6), schedule.sparsity(7)) == (0.0, 0.8)


def test_a_window_alone_keeps_choosing() -> None:
    schedule = Schedule(0.8, frequency=4, update_end=10)
    assert [step for step in range(20) if schedule.updates(step)] == [0, 4, 8, 10]


def test_a_straight_line() -> None:
    schedule = Schedule(0.8, initial=0.4, begin=10, end=20, exponent=1.0)
    assert [schedule.sparsity(step) for step in (9, 10, 15, 20)] == pytest.approx(
        [0.0, 0.4, 0.6, 0.8]
    )


@given(
    st.floats(0, 0.99),
    st.integers(0, 50),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_the_final_sparsity_is_reached_whatever_the_frequency(
    final: float, begin: int, length: int, frequency: int, more: int
) -> None:
    end = begin + length
    schedule = Schedule(final, begin=begin, end=end, frequency=frequency, update_end=end + more)
    updates = [step for step in range(end + more + 50) if schedule.updates(step)]
    assert end in updates
    assert updates[0] == begin
    assert updates[-1] == schedule.last_update
    asked = [schedule.sparsity(step) for step in updates]
    assert asked == sorted(asked)
    assert asked[-1] == final
