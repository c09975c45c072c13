"""reweighted-l1: the proximal step by hand, its weights, its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, SpecError
from sparsefx.passes.prune.reweighted_l1 import ReweightedL1
from sparsefx.testing import assert_pass, small_program


def linear(*values: float) -> Program:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([values]))
    return small_program(layer, input=torch.ones(1, len(values)))


def test_golden_text() -> None:
    assert_pass(
        ReweightedL1(shrink=0.25, roles=("other",)),
        linear(1.0, 2.0),
        """
        %linear = aten.linear(%input_1, %weight)
        %abs_1 = aten.abs(%weight)
        %mul = aten.mul.Tensor(%abs_1, %weight_l1)
        %sum_1 = aten.sum(%mul)
        %mul_1 = aten.mul.Tensor(%sum_1, 0.25)
        return {output: %linear, loss.l1: %mul_1}
        """,
        applied=1,
        skipped=[],
    )


def test_steps_by_hand_with_a_save_between(tmp_path: Path) -> None:
    text = "reweighted-l1{shrink=0.4,over=4,reweight_every=2,epsilon=0.5,roles=other}"
    program = Pipeline.parse(text).run(linear(1.0, -0.3, 0.05))
    weight, scale = torch.tensor([1.0, -0.3, 0.05]), torch.ones(3)
    for step in range(1, 6):
        program.step()
        if step == 3:
            program = Program.load(program.save(tmp_path / "saved"))
        weight = weight.sign() * (weight.abs() - 0.1 * scale).clamp(min=0)
        if step % 2 == 0:
            scale = 1 / (weight.abs() + 0.5)
        torch.testing.assert_close(program.tensor("weight").detach()[0], weight)
        torch.testing.assert_close(program.tensor("weight_l1")[0], scale)
    expected = 0.1 * (weight.abs() * scale).sum()
    torch.testing.assert_close(program(input=torch.ones(1, 3))["loss.l1"], expected)


def test_a_parameter_of_the_model_that_is_called_like_a_scale_stays(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1, bias=False)
            self.scale = nn.Parameter(torch.ones(2))
            self.scale_l1 = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.linear(x * self.scale + self.scale_l1)
            return found

    program = small_program(Scaled(), x=torch.ones(1, 2))
    program = Pipeline.parse("reweighted-l1{shrink=0.1,reweight_every=1,roles=other}").run(program)
    before = program.tensor("linear.weight").detach().clone()
    program = Program.load(program.save(tmp_path / "saved"))
    program.step()
    assert not torch.equal(program.tensor("linear.weight"), before)
    for name in ("scale", "scale_l1"):
        assert program.tensor(name).tolist() == [1.0, 1.0]


def test_a_lock_ends_it_and_keeps_its_zeros() -> None:
    program = Pipeline.parse("reweighted-l1{shrink=0.2,roles=other}").run(linear(1.0, -0.1))
    program.step()
    locked = Pipeline.parse("keep-outputs{outputs=output},pattern-lock").run(program)
    assert [item.name for item in locked.active] == ["pattern-lock"]
    assert set(locked.named_tensors()) == {"weight", "weight_mask"}
    before = locked.tensor("weight").detach().clone()
    locked.step()
    assert torch.equal(locked.tensor("weight"), before)
    assert locked.tensor("weight_mask").tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("text", ["shrink=0.0", "over=0", "epsilon=-1.0", "reweight_every=-1"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises((PassError, SpecError), match=text.replace(".", r"\.")):
        Pipeline.parse(f"reweighted-l1{{{text}}}").run(linear(1.0))
