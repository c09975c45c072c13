"""movement-prune and straight-through masks: their gradients, steps by hand, their end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program, registry
from sparsefx.errors import PassError, SpecError, TrainingError
from sparsefx.passes.prune.movement import MovementPrune
from sparsefx.rewrite import Rewriter
from sparsefx.testing import assert_equal_outputs, assert_pass, graph_text, small_program

OTHER = ("other",)


@pytest.fixture
def plain() -> Program:
    torch.manual_seed(0)
    return small_program(nn.Linear(6, 3, bias=False), input=torch.ones(4, 6))


def step(program: Program, x: Tensor, rate: float) -> None:
    optimizer = torch.optim.SGD(program.parameters(), lr=rate)
    outputs = program(input=x)
    loss = outputs["output"].square().mean() + outputs.get("loss", torch.zeros(()))
    torch.autograd.backward(loss)
    optimizer.step()
    program.step()
    optimizer.zero_grad()


def gradient(weight: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Of the loss above by the masked weight."""
    return (2 / 12) * (x @ (weight * mask).T).T @ x


# -- the graph -----------------------------------------------------------------------------------


def test_before_and_after(plain: Program) -> None:
    after = """
        %scored_mask = sparsefx.scored_mask(%weight, %weight_mask, %weight_scores)
        %linear = aten.linear(%input_1, %scored_mask)
        return {output: %linear}
    """
    pruned = assert_pass(MovementPrune(0.5, roles=OTHER), plain, after, applied=1, skipped=[])
    assert_equal_outputs(plain, pruned, {"input": torch.randn(4, 6)})


def test_a_threshold_adds_to_the_loss(plain: Program) -> None:
    after = """
        %scored_mask = sparsefx.scored_mask(%weight, %weight_mask, %weight_scores)
        %linear = aten.linear(%input_1, %scored_mask)
        %mul = aten.mul.Tensor(%weight_scores, 10.0)
        %sigmoid = aten.sigmoid(%mul)
        %mean = aten.mean(%sigmoid)
        %stack = aten.stack([%mean])
        %mean_1 = aten.mean(%stack)
        %mul_1 = aten.mul.Tensor(%mean_1, %movement_penalty)
        return {output: %linear, loss: %mul_1, loss.movement: %mean_1}
    """
    item = MovementPrune(choice="threshold", rate=10.0, roles=OTHER, on_no_match="ignore")
    pruned = assert_pass(item, plain, after, applied=1, skipped=[])
    again = Pipeline((item,)).run(pruned)
    assert not again.history[-1].changed
    assert "loss.movement: it is returned already" in map(str, again.history[-1].skipped)


# -- steps ---------------------------------------------------------------------------------------


def test_steps_by_hand_with_a_save_between(plain: Program, tmp_path: Path) -> None:
    program = Pipeline.parse("movement-prune{sparsity=0.5,end=3,update_end=9,roles=other}").run(
        plain
    )
    weight, mask = plain.tensor("weight").detach().clone(), torch.ones(3, 6)
    scores = torch.zeros(3, 6)
    back = 0
    for number in range(1, 9):
        x = torch.randn(4, 6)
        step(program, x, rate=0.3)
        program = Program.load(program.save(tmp_path / "saved"))
        slope = gradient(weight, mask, x)
        scores = scores - 0.3 * weight * slope
        weight = weight - 0.3 * mask * slope
        sparsity = program.active[0].schedule.sparsity(number)  # type: ignore[attr-defined]
        former, kept = mask, int(18 * (1 - sparsity) + 1e-6)
        mask = (scores >= scores.flatten().sort(descending=True).values[kept - 1]).float()
        back += int(((mask == 1) & (former == 0)).sum())
        torch.testing.assert_close(program.tensor("weight_scores").detach(), scores)
        torch.testing.assert_close(program.tensor("weight").detach(), weight)
        assert torch.equal(program.tensor("weight_mask"), mask)
    assert float(mask.mean()) == 0.5
    assert back > 0


def test_a_penalty_makes_the_scores_fall(plain: Program) -> None:
    options = (
        "choice=threshold,threshold=0.4,penalty=20.0,rate=10.0,end=4,update_end=40,roles=other"
    )
    program = Pipeline.parse(f"movement-prune{{{options}}}").run(plain)
    weight, mask = plain.tensor("weight").detach().clone(), torch.ones(3, 6)
    scores, ramp = torch.zeros(3, 6), 0.0
    for number in range(1, 9):
        x = torch.randn(4, 6)
        step(program, x, rate=0.01)
        slope, share = gradient(weight, mask, x), torch.sigmoid(10 * scores)
        scores = scores - 0.01 * (weight * slope + 20.0 * ramp / 18 * share * (1 - share))
        weight = weight - 0.01 * mask * slope
        ramp = 1 - (1 - min(1.0, (number - 1) / 3)) ** 3
        mask = (torch.sigmoid(10 * scores) > 0.4 * ramp).float()
        torch.testing.assert_close(program.tensor("weight_scores").detach(), scores)
        assert torch.equal(program.tensor("weight_mask"), mask)
    for _ in range(30):
        step(program, torch.zeros(4, 6), rate=0.1)
    assert int(program.tensor("weight_mask").sum()) == 1  # never all of them


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["movement-prune{sparsity=0.5}", "magnitude-prune{mask='straight-through'}"]
)
@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_targets_run_what_still_trains(plain: Program, text: str, target: str) -> None:
    program = Pipeline.parse(text.replace("}", ",roles=other}")).run(plain).eval()
    x = torch.randn(4, 6)
    compiled = registry.parse_target(target).compile(program)
    torch.testing.assert_close(compiled(input=x)["output"], program(input=x)["output"].detach())
    refused = registry.parse_target("onnxruntime").unsupported(program)
    assert "program: masks are not folded; run fold-masks before" in map(str, refused)


@pytest.mark.parametrize("end", ["pattern-lock", "fold-masks"])
def test_scores_go_with_the_schedule(plain: Program, end: str) -> None:
    program = Pipeline.parse("movement-prune{sparsity=0.5,roles=other}").run(plain)
    step(program, torch.randn(4, 6), rate=0.1)
    ended = Pipeline.parse(end).run(program)
    assert "scored_mask" not in graph_text(ended)
    assert "weight_scores" not in ended.named_tensors()
    assert [item.name for item in ended.active] == ["pattern-lock"] * (end == "pattern-lock")
    assert_equal_outputs(program, ended, {"input": torch.randn(4, 6)})


@pytest.mark.parametrize("choice", ["top", "threshold"])
def test_frozen_scores_are_refused(plain: Program, choice: str) -> None:
    text = f"movement-prune{{sparsity=0.5,choice={choice},roles=other}}"
    program = Pipeline.parse(text).run(plain)
    program.tensor("weight_scores").requires_grad_(False)
    with pytest.raises(TrainingError, match="its scores are frozen") as caught:
        step(program, torch.ones(4, 6), 0.1)
    assert caught.value.where == "weight"


def test_the_loss_has_to_go_first(plain: Program) -> None:
    program = Pipeline.parse("movement-prune{choice=threshold,roles=other}").run(plain)
    with pytest.raises(PassError, match=r"the output loss\.movement still reads the scores"):
        Pipeline.parse("fold-masks").run(program)
    folded = Pipeline.parse("keep-outputs{outputs=output},fold-masks").run(program)
    assert set(folded.named_tensors()) == {"weight"}


def test_the_penalty_is_that_of_the_threshold() -> None:
    """Beside it a pass that keeps the largest scores neither sets the penalty nor waits for it."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False))
    program = small_program(layers, input=torch.ones(4, 6))
    text = (
        "movement-prune{choice=threshold,penalty=20.0,rate=10.0,include='0.weight',roles=other},"
        "movement-prune{sparsity=0.5,penalty=7.0,include='1.weight',roles=other}"
    )
    program = Pipeline.parse(text).run(program)
    for _ in range(2):
        step(program, torch.randn(4, 6), rate=0.1)
    assert float(program.tensor("movement_penalty")) == 2.0
    top = program.active[1]
    assert isinstance(top, MovementPrune)
    top.drop_state(Rewriter(program))
    assert "1.weight_scores" not in program.named_tensors()
    assert "0.weight_scores" in program.named_tensors()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("end=0,begin=0", "end=0: expected a step >= 1"),
        ("mask=hard", "mask='hard': expected 'soft'"),
        ("scope=global", "scope='global': expected 'tensor'"),
        ("threshold=1.0", "threshold=1.0: expected a value of the sigmoid"),
        ("penalty=-1.0", "penalty=-1.0: expected a number of 0 or more"),
        ("rate=0.0", "rate=0.0: expected a number above 0"),
        ("choice=threshold,pattern='1x2'", "pattern='1x2': a threshold decides"),
    ],
)
def test_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"movement-prune{{{text}}}")
    assert message in str(caught.value)


# -- straight-through masks ----------------------------------------------------------------------


def test_masked_weights_go_on_learning(plain: Program) -> None:
    text = "magnitude-prune{sparsity=0.5,end=1,update_end=20,mask='straight-through',roles=other}"
    program = Pipeline.parse(text).run(plain)
    assert "sparsefx.straight_through(%weight, %weight_mask)" in graph_text(program)
    weight, mask = plain.tensor("weight").detach().clone(), torch.ones(3, 6)
    seen = []
    for _ in range(12):
        x = torch.randn(4, 6)
        step(program, x, rate=0.5)
        weight = weight - 0.5 * gradient(weight, mask, x)
        mask = (weight.abs() >= weight.abs().flatten().sort().values[9]).float()
        seen.append(mask)
        torch.testing.assert_close(program.tensor("weight").detach(), weight)
        assert torch.equal(program.tensor("weight_mask"), mask)
    assert any(bool((b > a).any()) for a, b in pairwise(seen))
    locked = Pipeline.parse("pattern-lock").run(program)
    assert "straight_through" not in graph_text(locked)
    assert_equal_outputs(program, locked, {"input": torch.randn(4, 6)})


@pytest.mark.parametrize(
    ("options", "told"),
    [("sparsity=0.5", True), ("sparsity=0.0", False), ("choice=threshold", False)],
)
def test_scores_that_never_moved_are_told(
    plain: Program, caplog: pytest.LogCaptureFixture, options: str, told: bool
) -> None:
    # As under a learning rate of 0, with which a warm-up begins: all scores tie, and all stay.
    pruned = Pipeline.parse(f"movement-prune{{{options},end=2,roles=other}}").run(plain)
    pruned.step()
    assert not caplog.records
    pruned.step()
    assert ("lost no weight" in caplog.text) == told
