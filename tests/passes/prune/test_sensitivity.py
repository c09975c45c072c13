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
from sparsefx.passes.prune.patterns import Unstructured, mask_for
from sparsefx.passes.prune.sensitivity import Sensitivity, measure_sensitivity
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


def test_weights_are_chosen_by_name() -> None:
    only = measure_sensitivity(
        program(), BATCHES[:1], loss, levels=(0.5,), include=("query",), exclude=("layer.1",)
    )
    assert list(only.curves) == ["bert.encoder.layer.0.attention.self.query.weight"]
