"""The integer semantics: exact sums, scales and bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsefx.backends.reference.integer import accumulate, integer_linear
from sparsefx.graph.ops import dequantize


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
