"""The fake-quantization operators: formulas, gradients, the mode, types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsefx.graph.fake_quantization import affine_parameters, symmetric_scale
from sparsefx.graph.ops import dequantize, quantize

ops = torch.ops.sparsefx
STEP = torch.zeros((), dtype=torch.int64)


def empty_range() -> tuple[Tensor, Tensor]:
    return torch.tensor(float("inf")), torch.tensor(float("-inf"))


def test_first_values_set_the_range_and_later_ones_move_it() -> None:
    low, high = empty_range()
    ops.observe(torch.tensor([-1.0, 3.0]), low, high, STEP, 0.01, 0, None, True)
    assert (float(low), float(high)) == (-1.0, 3.0)
    ops.observe(torch.tensor([-2.0, 13.0]), low, high, STEP, 0.01, 0, None, True)
    assert float(low) == pytest.approx(-1.01)
    assert float(high) == pytest.approx(3.1)


def test_observer_stands_still_in_evaluation_before_begin_and_when_frozen() -> None:
    x = torch.tensor([-1.0, 3.0])
    for step, training in ((5, False), (1, True), (8, True)):
        low, high = empty_range()
        ops.observe(x, low, high, torch.tensor(step), 0.01, 2, 8, training)
        assert torch.isinf(low)
        assert torch.isinf(high)
    ops.observe(x, low, high, torch.tensor(2), 0.01, 2, 8, True)
    assert float(high) == 3.0


def test_average_zero_keeps_the_extremes() -> None:
    low, high = empty_range()
    for values in ([-1.0, 3.0], [-4.0, 1.0], [0.0, 2.0]):
        ops.observe(torch.tensor(values), low, high, STEP, 0.0, 0, None, True)
    assert (float(low), float(high)) == (-4.0, 3.0)


def test_parameters_are_those_of_torch() -> None:
    low, high = torch.tensor(-1.3), torch.tensor(2.2)
    scale, zero_point = affine_parameters(low, high, 0, 255)
    assert float(scale) == pytest.approx(3.5 / 255)
    assert int(zero_point) == round(1.3 / (3.5 / 255))
    assert int(affine_parameters(torch.tensor(0.5), torch.tensor(2.0), 0, 255)[1]) == 0
    assert int(affine_parameters(torch.tensor(-2.0), torch.tensor(-1.0), 0, 255)[1]) == 255


def test_paper_scale_of_weights() -> None:
    weight = torch.tensor([[0.5, -2.0], [0.25, 0.0]])
    assert float(symmetric_scale(weight, -128, 127)) == pytest.approx(2.0 / 127.5)
    assert symmetric_scale(weight, -127, 127, 0).tolist() == pytest.approx([2 / 127, 0.25 / 127])
    assert float(symmetric_scale(torch.zeros(2, 2), -128, 127)) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(0, 255), (-128, 127)]), st.floats(1e-6, 1e6))
def test_equals_quantize_then_dequantize(seed: int, span: tuple[int, int], size: float) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * size
    low, high = x.min() * 0.8, x.max() * 0.7
    scale, zero_point = affine_parameters(low, high, *span)
    expected = dequantize(quantize(x, scale, zero_point, *span), scale, zero_point)
    assert torch.equal(ops.fake_quantize(x, low, high, STEP, 0, *span), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 0, 1]))
def test_weight_zeros_stay_zero(seed: int, axis: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 6, generator=generator)
    weight[torch.rand(8, 6, generator=generator) < 0.9] = 0.0
    found = ops.fake_quantize_weight(weight, STEP, 0, -128, 127, axis)
    assert not found[weight == 0].any()
    step = symmetric_scale(weight, -128, 127, axis)
    step = step if axis is None else step.unsqueeze(1 - axis)
    assert ((found - weight).abs() <= step * 0.5001).all()


def test_gradient_is_one_inside_the_range_and_zero_outside() -> None:
    x = torch.tensor([-5.0, -1.0, 0.3, 2.0, 9.0], requires_grad=True)
    ops.fake_quantize(x, torch.tensor(-1.0), torch.tensor(2.0), STEP, 0, 0, 255).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_without_data_or_before_begin_values_pass() -> None:
    x = torch.randn(5, requires_grad=True)
    low, high = empty_range()
    assert torch.equal(ops.fake_quantize(x, low, high, STEP, 0, 0, 255), x)
    found = ops.fake_quantize(x, torch.tensor(-0.1), torch.tensor(0.1), STEP, 3, 0, 255)
    found.sum().backward()
    assert torch.equal(found, x)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(5))
    assert torch.equal(ops.fake_quantize_weight(x, STEP, 1, -128, 127), x)


def test_bfloat16_stays_bfloat16() -> None:
    x = torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)
    low, high = empty_range()
    ops.observe(x, low, high, STEP, 0.01, 0, None, True)
    found = ops.fake_quantize(x, low, high, STEP, 0, 0, 255)
    found.sum().backward()
    assert found.dtype == torch.bfloat16
    assert low.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_operators_hold_the_rules_of_custom_operators() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    calls = (
        (ops.fake_quantize.default, (x, low, high, STEP, 0, 0, 255)),
        (ops.fake_quantize_weight.default, (x, STEP, 0, -128, 127, 0)),
        (ops.observe.default, (x.detach(), low, high, STEP, 0.01, 0, None, True)),
    )
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=checks)
