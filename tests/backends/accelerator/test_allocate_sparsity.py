"""allocate-sparsity: budgets hold, harm goes where it is least, mistakes are told."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsefx import Pipeline, Program
from sparsefx.backends.accelerator.studies.allocate import AllocateSparsity
from sparsefx.errors import PassError, SparsefxError
from sparsefx.passes.prune.loss_curves import (
    LossCurve,
    read_loss_curves,
    write_loss_curves,
)
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


def test_a_measured_sensitivity_overrules_magnitudes(tmp_path: Path) -> None:
    # The layer that loses least by magnitude is the one whose pruning costs most, as measured.
    curves = {"0.weight": LossCurve(((0.9, 0.01),)), "1.weight": LossCurve(((0.5, 1), (0.9, 5)))}
    for name in ("curves.yaml", "curves.json"):
        file = write_loss_curves(curves, tmp_path / name)
        assert read_loss_curves(file) == curves
        spec = (
            f"allocate-sparsity{{arch='lock-step-32',budget=0.5,roles=other,sensitivity='{file}'}}"
        )
        program = Pipeline.parse(spec).run(two_layers())
        even, peaked = (program.tensor(f"{i}.weight") for i in (0, 1))
        assert (peaked == 0).float().mean() < (even == 0).float().mean()


@pytest.mark.parametrize("measure", ["cycles", "bytes", "energy"])
def test_a_measured_sensitivity_holds_every_budget(measure: str, tmp_path: Path) -> None:
    flat, steep = (LossCurve(((0.5, slope * 0.5), (0.9, slope * 0.9))) for slope in (0, 1))
    curves = {"0.weight": flat, "1.weight": steep}
    file = write_loss_curves(curves, tmp_path / "curves.yaml")
    options = f"budget=0.7,measure='{measure}',roles=other,sensitivity='{file}'"
    program = Pipeline.parse(f"allocate-sparsity{{arch='lock-step-32',{options}}}").run(
        two_layers()
    )
    assert 5 < float(program.history[-1].notes[0].split("%")[0]) <= 70


def test_a_layer_that_was_pruned_goes_on_only_at_the_price_of_the_rest(tmp_path: Path) -> None:
    # Up to 70 % layer 1 loses more than layer 0, and less than layer 0 does beyond that.
    first, second = LossCurve(((0.7, 1), (1, 31))), LossCurve(((0.7, 8), (1, 68)))
    curves = {"0.weight": first, "1.weight": second}
    file = write_loss_curves(curves, tmp_path / "curves.yaml")
    options = f"budget=0.53,measure='bytes',roles=other,sensitivity='{file}'"
    program = Pipeline.parse(f"allocate-sparsity{{{options}}}").run(two_layers())
    assert program.history[-1].notes[1] == "0.weight 70%, 1.weight 70%"


def test_loss_curves_never_fall_and_go_on_straight() -> None:
    curve = LossCurve(((0.9, 0.4), (0.5, 0.2), (0.7, 0.1)))
    assert [curve.at(place) for place in (0, 0.25, 0.5, 0.6, 0.7)] == [0, 0.1, 0.2, 0.2, 0.2]
    assert curve.at(1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.weight: [[0.5, 1]]\n2.weight: [[0.5, 1]]", r"1 weights have no curve in .*1\.weight"),
        (
            "0.weight: [[1.5, 1]]",
            r"curves\.yaml: 0\.weight: expected different sparsities in 0\.\.1",
        ),
        ("0.weight: 3", r"0\.weight: .*not iterable"),
        ("0.weight: []", "at least one pair"),
        ("- 3", "expected weights with pairs"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_sensitivities_are_told(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "curves.yaml"
    file.write_text(text)
    spec = f"allocate-sparsity{{arch='lock-step-32',roles=other,sensitivity='{file}'}}"
    with pytest.raises(SparsefxError) as caught:
        Pipeline.parse(spec).run(two_layers())
    assert re.search(message, str(caught.value), re.DOTALL)


def test_no_layer_loses_all_its_weights() -> None:
    # 97 % of 16 weights of a row would leave none; 95 % leave one.
    program = small_program(nn.Linear(16, 32, bias=False), input=torch.ones(1, 16))
    spec = "allocate-sparsity{{budget={},measure='bytes',roles=other}}"
    pruned = Pipeline.parse(spec.format(0.11)).run(program)
    assert int(torch.count_nonzero(pruned.tensor("weight"))) == 32
    with pytest.raises(PassError, match="are left with every layer at its sparsest"):
        Pipeline.parse(spec.format(0.05)).run(program)


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
        ({"measure": "time"}, "measure='time': expected 'cycles', 'bytes' or 'energy'"),
        ({"rows": 0}, "rows=0: expected at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        AllocateSparsity(**options)  # type: ignore[arg-type]  # wrong on purpose
