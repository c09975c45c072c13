from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsefx.backends.cpu.kernels.rowloop import SPAN
from sparsefx.backends.cpu.machine.isa import ISAS, IsaName
from sparsefx.backends.cpu.plan.weights import FORMATS, SHORT, TILED, Format, pack
from sparsefx.backends.formats.quads import pack_quads
from tests.backends.cpu_cases import ARM_MODELS, EMULATED, RUNNABLE, LinearCase

FLOATS: tuple[Format, ...] = ("rows", "dense_f32")
TILED_LAYOUT: tuple[Format, ...] = ("blocks", "dense_amx", "masked_amx")


def formats(isa: IsaName) -> tuple[Format, ...]:
    """Formats of int8 weights on an instruction set; of a model, those that it bears upon."""
    if isa in EMULATED:
        return TILED_LAYOUT
    if isa in ARM_MODELS:
        return ("quads", "blocks", "dense_i8")
    known = FORMATS if ISAS[isa].has_dot else FLOATS
    return tuple(f for f in known if f not in SHORT and (ISAS[isa].has_tiles or f not in TILED))


INTEGER = [(i, f) for i in (*RUNNABLE, *EMULATED, *ARM_MODELS) for f in formats(i)]
FLOAT = [(i, f) for i in RUNNABLE for f in FLOATS]


def integers(
    tokens: int, columns: int, rows: int, density: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (tokens, columns))
    w = rng.integers(-128, 128, (rows, columns)) * (rng.random((rows, columns)) < density)
    return x, w.astype(np.int8)


@pytest.mark.parametrize(("isa", "format"), INTEGER)
@settings(max_examples=8, deadline=None)
@given(
    tokens=st.sampled_from([1, 15, 16, 17, 32, 33, 64, 65, 130, 300]),
    columns=st.integers(1, 90),
    rows=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 9),
)
def test_integers_are_exact(
    isa: IsaName,
    format: Format,
    tokens: int,
    columns: int,
    rows: int,
    density: float,
    zero_point: int,
    seed: int,
) -> None:
    x, w = integers(tokens, columns, rows, density, seed)
    case = LinearCase(isa, format, x, w, zero_point)
    np.testing.assert_array_equal(case.run(), case.expected())


@pytest.mark.parametrize(("isa", "format"), INTEGER)
def test_the_largest_integers_do_not_saturate(isa: IsaName, format: Format) -> None:
    x = np.full((3, 3072), 255)
    w = np.full((2, 3072), -128, np.int8)
    w[1, ::2] = 127
    case = LinearCase(isa, format, x, w, 0)
    np.testing.assert_array_equal(case.run(), case.expected())


@pytest.mark.parametrize(("isa", "format"), INTEGER)
@pytest.mark.parametrize("tokens", [20, 150])
def test_rows_of_many_channels_wait_between_spans(
    isa: IsaName, format: Format, tokens: int
) -> None:
    x, w = integers(tokens, 2 * SPAN + 90, 11, 0.4, 0)
    w[3], w[5, : 2 * SPAN] = 0, 0
    if format in ("quads", "blocks"):
        assert pack(w, format).words["spans"] == 3
    case = LinearCase(isa, format, x, w, 7)
    np.testing.assert_array_equal(case.run(), case.expected())


@pytest.mark.parametrize(("isa", "format"), FLOAT)
@pytest.mark.parametrize(("tokens", "columns", "density"), [(1, 5, 1.0), (70, 96, 0.2)])
def test_floats(isa: IsaName, format: Format, tokens: int, columns: int, density: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, columns))
    w = rng.standard_normal((13, columns)) * (rng.random((13, columns)) < density)
    case = LinearCase(isa, format, x, w.astype(np.float32))
    np.testing.assert_allclose(case.run(), case.expected(), atol=2e-5)


@pytest.mark.parametrize("isa", RUNNABLE[:1])
def test_long_inputs(isa: IsaName) -> None:
    x, w = integers(2048, 64, 16, 0.1, 0)
    case = LinearCase(isa, "quads" if ISAS[isa].has_dot else "rows", x, w)
    np.testing.assert_array_equal(case.run(), case.expected())


@given(rows=st.integers(1, 9), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_quads_hold_the_matrix(rows: int, columns: int, seed: int) -> None:
    _, w = integers(1, columns, rows, 0.3, seed)
    packed = pack_quads(w)
    np.testing.assert_array_equal(packed.dense(columns), w)
    assert (np.diff(packed.row_start) == -(-np.count_nonzero(w, axis=1) // 4)).all()
