"""The accelerator's weight formats: exact bit counts and round trips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsefx.backends.formats.bank_balanced import BankBalanced
from sparsefx.backends.formats.bitmap import Bitmap
from sparsefx.backends.formats.block import Block
from sparsefx.backends.formats.dense import Dense
from sparsefx.backends.formats.encoding import Int8Array, SparseFormat
from sparsefx.backends.formats.n_of_m import NOfM
from sparsefx.backends.formats.relative_index import RelativeIndex
from sparsefx.backends.formats.run_length import RunLength

FORMATS: list[SparseFormat] = [
    Dense(),
    Bitmap(),
    RunLength(),
    RunLength(run_bits=2, interleave=3),
    RelativeIndex(),
    RelativeIndex(order="column"),
    NOfM(8, 8),
    BankBalanced(m=5),
    Block(),
    Block(height=2, width=3),
]

matrices = st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(0, 100)).flatmap(
    lambda s: hnp.arrays(np.int8, (s[0], s[1]), elements=st.integers(-128, 127)).map(
        lambda w: np.where(np.random.default_rng(s[2]).random(w.shape) < s[2] / 100, w, 0).astype(
            np.int8
        )
    )
)


@pytest.mark.parametrize("form", FORMATS, ids=repr)
@settings(max_examples=25, deadline=None)
@given(matrix=matrices)
def test_round_trip_and_exact_size(form: SparseFormat, matrix: Int8Array) -> None:
    encoded = form.encode(matrix)
    assert np.array_equal(form.decode(encoded), matrix)
    assert encoded.size == form.measure(matrix != 0)
    assert encoded.stream.size == encoded.size.bytes
    assert encoded.size.value_bits == 8 * np.count_nonzero(matrix)


def test_eie_padding_zero_after_a_run_of_fifteen() -> None:
    column = np.zeros((40, 1), np.int8)
    column[[15, 32]] = 1  # runs of 15 (fits) and of 16 (one padding zero)
    size = RunLength().measure(column != 0)
    assert (size.value_bits, size.padding_bits, size.index_bits) == (16, 8, 12)


def test_two_of_four_costs_ten_bits_a_slot() -> None:
    mask = np.tile([True, True, False, False], (8, 16))
    assert NOfM(2, 4).measure(mask).bits == 8 * 32 * (8 + 2)


def test_n_of_m_refuses_a_fuller_group() -> None:
    with pytest.raises(ValueError, match=r"a group of 4 holds 3 values, 2 are allowed"):
        NOfM(2, 4).measure(np.array([[True, True, True, False]]))


def test_an_empty_matrix_costs_no_values() -> None:
    mask = np.zeros((4, 64), bool)
    assert BankBalanced().measure(mask).bits == 0
    assert Bitmap().measure(mask).bits == 256


def test_only_int8_matrices_are_encoded() -> None:
    with pytest.raises(ValueError, match="expected an int8 matrix"):
        Bitmap().encode(np.zeros((2, 2), np.float32))
