"""Cost: the arithmetic of a BERT, by hand and from the graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsefx import Pipeline
from sparsefx.errors import ProgramError
from sparsefx.passes.analyses.cost import Cost
from sparsefx.testing import small_program
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


def test_a_deep_model_is_counted() -> None:
    layers = nn.Sequential(*(nn.ReLU() for _ in range(600)), nn.Linear(4, 2))
    report = small_program(layers, input=torch.ones(3, 4)).facts(Cost).at()
    assert [row.figures["MACs"] for row in report.rows] == [3 * 4 * 2]
    assert [row.figures["activation bytes"] for row in report.rows] == [4 * 3 * (4 + 2)]


@pytest.mark.parametrize(
    ("layer", "image", "places"),
    [
        (nn.Conv1d(4, 8, 3, groups=2), (4, 10), 8),
        (nn.Conv2d(4, 8, (3, 1), padding="same"), (4, 5, 6), 30),
    ],
)
def test_a_convolution_multiplies_at_every_place(
    layer: nn.Module, image: tuple[int, ...], places: int
) -> None:
    program = small_program(layer, input=torch.ones(2, *image))
    pruned = Pipeline.parse("magnitude-prune{sparsity=0.5,roles=convolution}").run(program)
    (row,) = pruned.facts(Cost).at().rows
    weights = program.tensor("weight").numel()
    assert row.figures["MACs"] == 2 * places * weights
    assert row.figures["effective MACs"] == 2 * places * weights / 2
    assert row.figures["weight bytes"] == 4 * weights


def test_a_size_that_is_missing_is_named() -> None:
    with pytest.raises(ProgramError, match=r"the size of sequence is needed"):
        shared("bert-cls").facts(Cost).at(batch=1)
