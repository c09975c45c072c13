"""Sensitivity: equal to changing one weight of an eager model; the Program stays as it is."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.prune.patterns import Pattern, Unstructured, mask_for
from sparsefx.passes.prune.sensitivity import UNTOUCHED, Sensitivity, measure_sensitivity
from sparsefx.passes.quantize.calibrate import calibrate
from tests.tiny_models import example_batch, tiny

LABELS = (torch.tensor([0, 1]), torch.tensor([1, 1, 0]))
BATCHES = (example_batch(2, 8, 0), example_batch(3, 8, 1))
NAME = "bert.encoder.layer.0.intermediate.dense.weight"


def loss(outputs: Any, number: int) -> Tensor:
    return F.cross_entropy(outputs["logits"], LABELS[number])


@cache
def program() -> Program:
    return sparsefx.capture(tiny("bert-cls"), example_batch()).eval()


@cache
def found() -> Sensitivity:
    return measure_sensitivity(program(), BATCHES, loss, levels=(0.9, 0.5))


def eager(change: Any) -> float:
    """Mean loss of the model with one weight changed in place."""
    model: Any = tiny("bert-cls")
    with torch.no_grad():
        weight = model.get_parameter(NAME)
        weight.copy_(change(weight))
        losses = [
            loss({"logits": model(**batch).logits}, number) for number, batch in enumerate(BATCHES)
        ]
    return float(sum(losses)) / len(losses)


def test_pruning_one_weight_equals_the_eager_model() -> None:
    before = program().fingerprint()
    base = eager(lambda weight: weight)
    assert found().base == pytest.approx(base, abs=1e-6)
    curve = dict(found().curves[NAME].points)
    assert list(curve) == [0.5, 0.9]
    for level, increase in curve.items():
        expected = eager(lambda w, s=level: w * mask_for(w.abs(), s, Unstructured())) - base
        assert increase == pytest.approx(expected, abs=1e-6)
    assert program().fingerprint() == before


@pytest.mark.parametrize("architecture", ["bert-cls", "albert"])
def test_each_weight_alone_is_changed_however_many_linears_read_it(architecture: str) -> None:
    model: Any = tiny(architecture)
    captured = sparsefx.capture(model, example_batch()).eval()
    measured = measure_sensitivity(captured, BATCHES, loss, levels=(0.9,))
    assert len(measured.curves) == {"bert-cls": 12, "albert": 6}[architecture]
    for name, curve in measured.curves.items():
        weight = model.get_parameter(name)
        whole = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(whole * mask_for(whole.abs(), 0.9, Unstructured()))
            found = [float(loss(model(**batch), number)) for number, batch in enumerate(BATCHES)]
            weight.copy_(whole)
        ((_, increase),) = curve.points
        assert increase == pytest.approx(sum(found) / 2 - measured.base, abs=1e-6)


def test_the_mask_of_a_weight_is_made_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def counted(scores: Tensor, level: float, pattern: Pattern) -> Tensor:
        made.append(level)
        return mask_for(scores, level, pattern)

    monkeypatch.setattr("sparsefx.passes.prune.sensitivity.mask_for", counted)
    again = measure_sensitivity(program(), BATCHES, loss, levels=(0.9, 0.5))
    assert made == [0.9, 0.5] * 12
    assert again == found()


def test_losses_that_are_known_are_not_measured_again() -> None:
    losses: dict[str, float] = {}
    measure_sensitivity(program(), BATCHES, loss, levels=(0.9, 0.5), losses=losses)
    assert next(iter(losses)) == UNTOUCHED
    assert len(losses) == 1 + 12 * 3
    some = dict(list(losses.items())[:20])
    asked: list[int] = []

    def counted(outputs: Any, number: int) -> Tensor:
        asked.append(number)
        return loss(outputs, number)

    again = measure_sensitivity(program(), BATCHES, counted, levels=(0.9, 0.5), losses=some)
    assert again == found()
    assert some == losses
    assert asked == [0, 1] * 17


def test_it_is_told_how_many_losses_there_are_and_how_long_they_take() -> None:
    told: list[tuple[int, int, float | None]] = []
    measure_sensitivity(
        program(), BATCHES, loss, levels=(0.9,), tell=lambda *each: told.append(each)
    )
    assert [done for done, _, _ in told] == [0, *(n for k in range(25) for n in (k, k + 1))]
    assert {total for _, total, _ in told} == {25}
    assert told[0][2] is None
    left = [seconds for _, _, seconds in told[1:] if seconds is not None]
    assert len(left) == 50
    assert left[-1] == pytest.approx(0, abs=1e-6)
    assert all(seconds > 0 for seconds in left[:-1])


def test_a_loss_that_is_no_number_is_named() -> None:
    calls: list[int] = []

    def broken(outputs: Any, number: int) -> Tensor:
        calls.append(number)
        return torch.tensor(float("nan")) if len(calls) > 4 else loss(outputs, number)

    with pytest.raises(PassError, match=r"the loss with bert.*query\.weight int8 is nan"):
        measure_sensitivity(program(), BATCHES, broken, levels=(0.9,))
    with pytest.raises(PassError, match="the loss of the untouched model is nan"):
        measure_sensitivity(program(), BATCHES, broken, levels=(0.9,))


def test_every_linear_of_the_encoder_is_measured_once() -> None:
    assert len(found().curves) == 12
    assert found().curves.keys() == found().int8.keys()
    assert all(abs(increase) < 0.05 for increase in found().int8.values())
    assert any(increase != 0 for increase in found().int8.values())


def test_int8_is_what_quantize_prepare_makes_of_one_linear() -> None:
    batch = BATCHES[0]
    only = measure_sensitivity(program(), [batch], loss, levels=(0.5,), include=(NAME,))
    text = f"weights=channel,weight_range=narrow,requantize='none',include='{NAME}'"
    prepared = Pipeline.parse(f"quantize-prepare{{{text}}}").run(program())
    calibrate(prepared, [batch])
    with torch.no_grad():
        expected = float(loss(prepared.eval()(**batch), 0)) - only.base
    assert only.int8[NAME] == pytest.approx(expected, abs=1e-7)
    assert expected != 0


def test_what_would_not_be_measured_is_refused() -> None:
    masked = Pipeline.parse("magnitude-prune{sparsity=0.5,include=query}").run(program())
    with pytest.raises(PassError, match="2 weights have masks") as caught:
        measure_sensitivity(masked, BATCHES, loss)
    assert caught.value.hint == "run fold-masks before"
    with pytest.raises(PassError, match="there is no batch"):
        measure_sensitivity(program(), [], loss)
    with pytest.raises(PassError, match=r"no linear to measure.*roles=encoder takes 12"):
        measure_sensitivity(program(), BATCHES, loss, roles=("other",))


def test_weights_are_chosen_by_name() -> None:
    only = measure_sensitivity(
        program(), BATCHES[:1], loss, levels=(0.5,), include=("query",), exclude=("layer.1",)
    )
    assert list(only.curves) == ["bert.encoder.layer.0.attention.self.query.weight"]
