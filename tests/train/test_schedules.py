"""Learning-rate schedules against transformers and against the paper's numbers."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from sparsefx.errors import TrainingError
from sparsefx.passbase import Window
from sparsefx.recipe import ScheduleSettings
from sparsefx.train.schedules import Factor, build, constant, cosine, linear, rewind

PAPER = rewind(100_000, 1_000, Window(0, 50_000, 1_000))


@pytest.mark.parametrize(
    ("factor", "reference"),
    [
        (linear(50, 5), get_linear_schedule_with_warmup),
        (linear(50, 0), get_linear_schedule_with_warmup),
        (cosine(50, 5), get_cosine_schedule_with_warmup),
    ],
)
def test_equals_transformers(factor: Factor, reference: object) -> None:
    warmup = 5 if factor(0) == 0 else 0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = reference(optimizer, warmup, 50)  # type: ignore[operator]  # one of two functions
    for t in range(51):
        assert factor(t) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_constant_stays() -> None:
    assert [constant(9, 2)(t) for t in (0, 1, 2, 8)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("t", "value"),
    [
        (0, 0.0),
        (999, 0.999),
        (1_000, 50 / 49),
        (1_999, 49_001 / 49_000),
        (2_000, 50 / 49),
        (49_999, 49_001 / 49_000),
        (50_000, 50 / 49),
        (60_000, 0.8163265),
        (75_000, 0.5102041),
        (99_999, 1 / 49_000),
        (100_000, 0.0),
    ],
)
def test_rewinding_has_the_numbers_of_the_paper(t: int, value: float) -> None:
    assert PAPER(t) == pytest.approx(value, abs=1e-6)


def test_rewinding_with_a_late_window_decays_first() -> None:
    factor = rewind(100, 10, Window(20, 60, 10))
    assert factor(15) == pytest.approx((60 - 15) / 50)
    assert factor(20) == pytest.approx((60 - 20) / 50)
    assert factor(29) == pytest.approx((60 - 29) / 50)
    assert factor(30) == pytest.approx((60 - 20) / 50)
    assert factor(60) == pytest.approx((100 - 60) / 50)


def test_settings_choose() -> None:
    assert build(ScheduleSettings(kind="constant", warmup=0), 10, None)(9) == 1.0
    assert build(ScheduleSettings(kind="linear", warmup="50%"), 10, None)(5) == 1.0
    assert build(ScheduleSettings(kind="cosine", warmup=0), 10, None)(5) == pytest.approx(0.5)
    given = ScheduleSettings(kind="rewind", warmup=0, begin=0, end="50%", every="10%")
    assert build(given, 100, None)(49) == pytest.approx(rewind(100, 0, Window(0, 50, 10))(49))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (ScheduleSettings(kind="rewind"), "none is active"),
        (ScheduleSettings(kind="rewind", begin=0, end=10, every=1), "leave no step"),
        (ScheduleSettings(kind="rewind", begin=5, end=5, every=1), "leave no step"),
        (ScheduleSettings(kind="rewind", begin=0, end=9, every=1, warmup=1), "leave no step"),
    ],
)
def test_impossible_windows_are_refused(settings: ScheduleSettings, why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        build(settings, 10, None)
