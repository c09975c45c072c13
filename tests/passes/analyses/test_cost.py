"""Cost: the arithmetic of a BERT, by hand and from the graph."""

from __future__ import annotations

import pytest

from sparsefx import Pipeline
from sparsefx.errors import ProgramError
from sparsefx.passes.analyses.cost import Cost
from tests.programs import captured, shared

SIZES = {"batch": 3, "sequence": 10}


def encoder_macs(batch: int, sequence: int) -> int:
    linears = 2 * (4 * 64 * 64 + 2 * 64 * 128) * batch * sequence
    return linears + 2 * 2 * batch * sequence * sequence * 64


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sequence", [1, 10, 128])
def test_macs_of_a_bert(attention: str, sequence: int) -> None:
    report = shared("bert-cls", attention).facts(Cost).at(batch=3, sequence=sequence)
    head = 3 * (64 * 64 + 64 * 2)
    assert report.total("MACs") == encoder_macs(3, sequence) + head
    assert report.total("effective MACs") == report.total("MACs")
    assert report.origin == "modelled"


def test_zeros_are_left_out() -> None:
    pruned = Pipeline.parse("magnitude-prune{sparsity=0.75}").run(captured("bert-cls"))
    dense, sparse = (p.facts(Cost).at(**SIZES) for p in (shared("bert-cls"), pruned))
    linears = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert sparse.total("MACs") == dense.total("MACs")
    saved = dense.total("effective MACs") - sparse.total("effective MACs")
    assert saved == 0.75 * linears * 30
    saved = dense.total("effective weight bytes") - sparse.total("effective weight bytes")
    assert saved == 4 * 0.75 * linears - linears / 8


def test_a_tied_table_is_stored_once() -> None:
    report = shared("bert-mlm").facts(Cost).at(**SIZES)
    tables = [row.figures for row in report.rows if row.where in ("%embedding", "%linear_13")]
    assert [row["weight bytes"] for row in tables] == [4 * 100 * 64, 0]
    assert [row["MACs"] for row in tables] == [0, 30 * 64 * 100]


def test_bytes_of_one_linear() -> None:
    rows = {row.where: row.figures for row in shared("bert-cls").facts(Cost).at(**SIZES).rows}
    assert rows["%linear"]["weight bytes"] == 4 * 64 * 64
    assert rows["%linear"]["activation bytes"] == 4 * 2 * 30 * 64


def test_a_size_that_is_missing_is_named() -> None:
    with pytest.raises(ProgramError, match=r"the size of sequence is needed"):
        shared("bert-cls").facts(Cost).at(batch=1)
