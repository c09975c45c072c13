"""allocate-sparsity: budgets hold, harm goes where it is least, mistakes are told."""

import pytest
import torch
from torch import nn

from sparsefx import Pipeline, Program
from sparsefx.backends.accelerator.allocate import AllocateSparsity
from sparsefx.errors import PassError
from sparsefx.testing import small_program
from tests.programs import captured


def two_layers() -> Program:
    """A layer of which all weights matter, and one with few large ones."""
    generator = torch.Generator().manual_seed(0)
    even, peaked = nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)
    even.weight = nn.Parameter(1 + 0.1 * torch.rand(128, 128, generator=generator))
    peaked.weight = nn.Parameter(torch.randn(128, 128, generator=generator) ** 5)
    return small_program(nn.Sequential(even, peaked), input=torch.ones(1, 128))


@pytest.mark.parametrize("measure", ["cycles", "bytes", "energy"])
@pytest.mark.parametrize("pattern", ["balanced", "unstructured"])
def test_the_budget_holds(measure: str, pattern: str) -> None:
    spec = (
        f"allocate-sparsity{{arch='lock-step-32',budget=0.7,measure='{measure}',"
        f"pattern='{pattern}',roles=other}}"
    )
    program = Pipeline.parse(spec).run(two_layers())
    left = float(program.history[-1].notes[0].split("%")[0])
    assert 5 < left <= 70


def test_the_layer_that_loses_least_is_pruned_most() -> None:
    spec = "allocate-sparsity{arch='lock-step-32',budget=0.5,roles=other}"
    program = Pipeline.parse(spec).run(two_layers())
    even, peaked = (program.tensor(f"{i}.weight") for i in (0, 1))
    assert (peaked == 0).float().mean() > (even == 0).float().mean()


def test_a_bert_on_the_default_machine() -> None:
    program = Pipeline.parse("allocate-sparsity{budget=0.6}").run(captured("bert-cls"))
    assert program.history[-1].applied == 12


def test_a_budget_out_of_reach_is_told() -> None:
    with pytest.raises(PassError, match=r"are left with every layer at its sparsest"):
        Pipeline.parse("allocate-sparsity{budget=0.001,roles=other}").run(two_layers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget=0.0: expected a share"),
        ({"measure": "time"}, "measure='time': expected one of cycles, bytes, energy"),
        ({"rows": 0}, "rows=0: expected at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        AllocateSparsity(**options)  # type: ignore[arg-type]  # wrong on purpose
