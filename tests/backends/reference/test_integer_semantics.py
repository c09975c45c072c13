"""The integer semantics: exact sums, bias, fixed-point re-quantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsefx.backends.reference.integer import (
    accumulate,
    fixed_point,
    integer_linear,
    quantize_bias,
    requantize,
    requantize_fixed,
)
from sparsefx.ops import dequantize


def integers(seed: int, rows: int = 5, inputs: int = 37, outputs: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (rows, inputs), generator=generator, dtype=torch.uint8)
    w = torch.randint(-128, 128, (outputs, inputs), generator=generator).to(torch.int8)
    return x, w


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 255))
def test_sums_are_those_of_numpy_integers(seed: int, zero_point: int) -> None:
    x, w = integers(seed)
    expected = (x.numpy().astype(np.int64) - zero_point) @ w.numpy().astype(np.int64).T
    found = accumulate(x, zero_point, w)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), expected)
    corrected = x.long() @ w.long().T - zero_point * w.long().sum(1)
    assert torch.equal(found.long(), corrected)


def test_no_16_bit_saturation_at_the_extremes() -> None:
    x, w = torch.full((1, 4096), 255, dtype=torch.uint8), torch.full((1, 4096), 127).to(torch.int8)
    assert int(accumulate(x, 0, w)) == 255 * 127 * 4096


def test_overflow_is_refused() -> None:
    x = torch.full((1, 70_000), 255, dtype=torch.uint8)
    with pytest.raises(OverflowError, match="leaves the range of int32"):
        accumulate(x, 0, torch.full((1, 70_000), 127).to(torch.int8))


@pytest.mark.parametrize("per_channel", [False, True])
def test_integer_linear_is_the_float_linear_of_dequantized_values(per_channel: bool) -> None:
    x, w = integers(3)
    scale, zero_point = torch.tensor(0.021), torch.tensor(117, dtype=torch.int32)
    weight_scale = torch.rand(6) * 0.01 + 0.001 if per_channel else torch.tensor(0.004)
    bias = torch.randn(6)
    found = integer_linear(
        x, w, bias, scale=scale, zero_point=zero_point, weight_scale=weight_scale
    )
    zeros = torch.zeros_like(weight_scale, dtype=torch.int32)
    expected = torch.nn.functional.linear(
        dequantize(x, scale, zero_point),
        dequantize(w, weight_scale, zeros, 0 if per_channel else None),
        bias,
    )
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-9, 100.0))
def test_fixed_point_is_nearest_with_16_bits(multiplier: float) -> None:
    a, n = fixed_point(torch.tensor(multiplier, dtype=torch.float64))
    assert 2**15 <= int(a) < 2**16
    assert int(a) * 2.0 ** -int(n) == pytest.approx(multiplier, rel=2.0**-16)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_both_ways_of_requantization_are_within_one_step(seed: int) -> None:
    x, w = integers(seed)
    generator = torch.Generator().manual_seed(seed)
    scale, zero_point = torch.tensor(0.02), torch.tensor(120, dtype=torch.int32)
    weight_scale = torch.rand(6, generator=generator) * 0.01 + 0.001
    bias = torch.randn(6, generator=generator)
    parameters = {"scale": scale, "zero_point": zero_point, "weight_scale": weight_scale}
    y = integer_linear(x, w, bias, **parameters)
    output_scale = (y.max() - y.min()) / 255
    output_zero = torch.round(-y.min() / output_scale).clamp(0, 255).to(torch.int32)
    floats = requantize(y, output_scale, output_zero)
    acc = accumulate(x, zero_point, w) + quantize_bias(bias, scale, weight_scale)
    a, n = fixed_point(scale * weight_scale / output_scale)
    fixed = requantize_fixed(acc, a, n, output_zero)
    assert floats.dtype == fixed.dtype == torch.uint8
    assert int((floats.int() - fixed.int()).abs().max()) <= 1


def test_bias_saturates() -> None:
    found = quantize_bias(torch.tensor([1e9, -1e9, 0.5]), torch.tensor(1e-3), torch.tensor(1e-2))
    assert found.tolist() == [2**31 - 1, -(2**31), 50000]
