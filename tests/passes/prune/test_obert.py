"""obert-prune: the inverse against a dense one, Optimal Brain Surgeon by hand, its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program
from sparsefx.errors import SpecError, TrainingError
from sparsefx.masks import find_masks
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.passes.prune import fisher
from sparsefx.passes.prune.obert import ObertPrune
from sparsefx.properties import Property
from sparsefx.recipe import Training
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from sparsefx.train.checkpoints import Checkpoints
from sparsefx.train.data.batches import encode
from sparsefx.train.randomness import seed_everything
from sparsefx.train.step.processes import Processes
from sparsefx.train.trainer import StageTrainer
from tests.train import tiny_run

OTHER = ("other",)


@pytest.fixture
def plain() -> Program:
    torch.manual_seed(0)
    return small_program(nn.Linear(6, 3, bias=False), input=torch.ones(4, 6))


def learned(gradients: Tensor, size: int, damp: float) -> Tensor:
    inverse = fisher.prior(gradients.shape[1], size, damp, gradients)
    for gradient in gradients:
        fisher.learn(inverse, fisher.cut(gradient, size), len(gradients))
    return inverse


def curvature(gradients: Tensor, damp: float) -> Tensor:
    exact = gradients.double()
    return damp * torch.eye(exact.shape[1]).double() + exact.T @ exact / len(exact)


# -- the formulas --------------------------------------------------------------------------------


def test_the_inverse_of_each_block() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(6, 10)
    inverse = learned(gradients, 4, damp=0.1)
    assert inverse.shape == (3, 4, 4)
    for block in range(2):
        exact = curvature(gradients[:, 4 * block : 4 * block + 4], 0.1).inverse()
        torch.testing.assert_close(inverse[block], exact.float(), rtol=1e-4, atol=1e-4)
    padding = inverse[2, 2:, 2:]
    torch.testing.assert_close(padding, 10 * torch.eye(2))


@pytest.mark.parametrize("columns", [1, 2])
def test_saliency_is_the_loss_that_a_unit_costs(columns: int) -> None:
    torch.manual_seed(0)
    gradients, weight = torch.randn(9, 4), torch.randn(1, 4)
    inverse, matrix = learned(gradients, 4, damp=0.1), curvature(gradients, 0.1).float()
    found = fisher.saliency(inverse, weight, columns)
    for unit in range(4 // columns):
        gone = torch.zeros(1, 4)
        gone[0, unit * columns : (unit + 1) * columns] = 1
        change = fisher.compensation(inverse, weight, gone, columns)
        left = weight - change
        assert float((left * gone).abs().max()) < 1e-5
        loss = 0.5 * float(change @ matrix @ change.T)
        assert float(found[0, unit * columns]) * columns == pytest.approx(loss, rel=1e-3)


def test_all_that_go_together_leave_the_least_loss() -> None:
    torch.manual_seed(0)
    gradients, weight = torch.randn(9, 5), torch.randn(1, 5)
    gone = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])
    inverse, matrix = learned(gradients, 5, damp=0.1), curvature(gradients, 0.1).float()
    change = fisher.compensation(inverse, weight, gone, together=True)
    kept, out = gone[0] == 0, gone[0] == 1
    # The minimum of 1/2 d F d under d = w where weights go: F_kk d_k = -F_kq w_q.
    best = weight.clone()
    best[0, kept] = -torch.linalg.solve(
        matrix[kept][:, kept], matrix[kept][:, out] @ weight[0, out]
    )
    torch.testing.assert_close(change, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [16, 50])
def test_the_shipped_damp_suffices_for_clipped_gradients(size: int) -> None:
    """A norm of 1 over 1000 weights; the double inverse says what is right."""
    torch.manual_seed(0)
    gradients = torch.randn(128, 1000)
    gradients /= gradients.norm(dim=1, keepdim=True)
    inverse = learned(gradients, size, damp=ObertPrune().damp)
    assert fisher.is_sound(inverse)
    for block in (0, 1000 // size - 1):
        part = gradients[:, size * block : size * (block + 1)]
        exact = curvature(part, ObertPrune().damp).inverse().diagonal()
        found = inverse[block].diagonal()[: len(exact)].double()
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=0.0)


# -- the pass ------------------------------------------------------------------------------------


def test_before_and_after(plain: Program) -> None:
    after = """
        %mul = aten.mul.Tensor(%weight, %weight_mask)
        %linear = aten.linear(%input_1, %mul)
        return {output: %linear}
    """
    pruned = assert_pass(ObertPrune(0.5, block=4, roles=OTHER), plain, after, applied=1, skipped=[])
    assert pruned.tensor("weight_fisher").shape == (5, 4, 4)
    assert_equal_outputs(plain, pruned, {"input": torch.randn(4, 6)})


def step(program: Program, x: Tensor, rate: float = 0.0) -> None:
    optimizer = torch.optim.SGD(program.parameters(), lr=rate)
    torch.autograd.backward(program(input=x)["output"].square().mean())
    optimizer.step()
    program.step()
    optimizer.zero_grad()


def test_steps_by_hand_with_a_save_between(plain: Program, tmp_path: Path) -> None:
    """Masks at the steps 2 and 4; the second choice knows the gradients of 3 and 4 alone."""
    text = "obert-prune{sparsity=0.5,begin=2,end=4,frequency=2,block=6,damp=0.01,roles=other"
    program = Pipeline.parse(text + ",initial_sparsity=0.25}").run(plain)
    weight, mask = plain.tensor("weight").detach().clone(), torch.ones(3, 6)
    batches = torch.randn(4, 4, 6)
    for choice, sparsity in enumerate((0.25, 0.5)):
        gradients = []
        for x in batches[2 * choice : 2 * choice + 2]:
            gradients.append((2 / 12) * (x @ weight.T).T @ x * mask)
            step(program, x)
            program = Program.load(program.save(tmp_path / "saved"))
        inverse = torch.stack(
            [
                curvature(torch.stack([g[row] for g in gradients]), 0.01).inverse().float()
                for row in range(3)
            ]
        )
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        scores = weight.square() / diagonal * mask
        chosen = scores >= scores.flatten().sort().values[18 - int(18 * (1 - sparsity))]
        gone = weight * (mask.bool() & ~chosen)
        weight = weight - (inverse @ (gone / diagonal).unsqueeze(-1)).squeeze(-1)
        mask = mask * chosen
        weight = weight * mask
        assert torch.equal(program.tensor("weight_mask"), mask)
        torch.testing.assert_close(program.tensor("weight").detach(), weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(program.tensor("weight_fisher")[0], 100 * torch.eye(6))


@pytest.mark.parametrize("compensation", ["each", "together"])
def test_it_costs_less_than_magnitudes(compensation: str) -> None:
    torch.manual_seed(0)
    plain = small_program(nn.Linear(16, 8, bias=False), input=torch.ones(1, 16))
    mixed = torch.randn(16, 16) * torch.logspace(-1, 1, 16)  # some inputs hardly matter
    x = torch.randn(64, 16) @ mixed / 16
    options = "sparsity=0.5,begin=48,end=48,roles=other"
    least = f"{options},block=16,compensation={compensation}"
    losses = []
    dense = plain.tensor("weight").detach().clone()
    for text in (f"magnitude-prune{{{options}}}", f"obert-prune{{{least}}}"):
        program = Pipeline.parse(text).run(plain)
        for row in x[:48]:
            noise = torch.randn(8)  # gradients of a loss that is at its minimum
            torch.autograd.backward((program(input=row[None])["output"] * noise).sum())
            program.step()
            program.module.zero_grad()
        losses.append(float((x @ (program.tensor("weight").detach() - dense).T).square().mean()))
    assert losses[1] < 0.5 * losses[0]


def test_blocks_and_the_global_scope(plain: Program) -> None:
    text = "obert-prune{sparsity=0.5,pattern='1x2',block=4,scope=global,roles=other,gradients=3}"
    program = Pipeline.parse(text).run(plain)
    step(program, torch.randn(4, 6))
    pairs = program.tensor("weight_mask").reshape(-1, 2).sum(1)
    assert sorted(pairs.tolist()) == [0.0] * 5 + [2.0] * 4


def test_gradients_must_be_there(plain: Program) -> None:
    program = Pipeline((ObertPrune(0.5, roles=OTHER),)).run(plain)
    with pytest.raises(TrainingError, match=r"call program\.step\(\) before optimizer\.zero_grad"):
        program.step()


def test_what_rounding_destroys_is_refused() -> None:
    torch.manual_seed(0)
    plain = small_program(nn.Linear(16, 16, bias=False), input=torch.ones(1, 16))
    program = Pipeline.parse("obert-prune{sparsity=0.5,begin=64,end=64,roles=other}").run(plain)
    for _ in range(63):
        program.tensor("weight").grad = 1e3 * torch.randn(16, 16)
        program.step()
    with pytest.raises(TrainingError) as caught:
        program.step()
    assert caught.value.where == "weight"
    assert "float32 cannot hold the inverse of its Fisher matrix" in str(caught.value)
    assert "raise damp=1e-07, or clip gradients" in str(caught.value)


@pytest.mark.parametrize("end", ["pattern-lock", "fold-masks"])
def test_its_state_outlives_simplify_and_goes_with_the_schedule(plain: Program, end: str) -> None:
    program = Pipeline.parse("obert-prune{sparsity=0.5,roles=other},simplify").run(plain)
    assert "weight_fisher" in program.named_tensors()
    step(program, torch.randn(4, 6))
    ended = Pipeline.parse(end).run(program)
    assert "weight_fisher" not in ended.named_tensors()
    assert [item.name for item in ended.active] == ["pattern-lock"] * (end == "pattern-lock")
    assert int((ended.tensor("weight") == 0).sum()) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("end=0,begin=0", "end=0: expected a step >= 1"),
        ("begin=0,initial_sparsity=0.5,end=4", "begin=0: with initial_sparsity"),
        ("mask=soft", "mask='soft': weights without gradients cannot be scored"),
        ("gradients=0", "gradients=0: expected at least 1"),
        ("damp=0.0", "damp=0.0: expected a number > 0"),
        ("block=6,pattern='1x4'", "block=6: expected a multiple of 4"),
    ],
)
def test_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"obert-prune{{{text}}}")
    assert message in str(caught.value)


# -- in a session --------------------------------------------------------------------------------


def trainer(program: Program) -> StageTrainer:
    seed_everything(0)
    given = tiny_run.data()
    examples = encode(given.tokenizer, given.task.split("train"), 16)
    settings = Training(steps=8)
    return StageTrainer(
        "one",
        settings,
        program,
        examples,
        "classification",
        steps=8,
        batch_size=8,
        seed=0,
        processes=Processes("cpu", 60.0),
    )


def test_a_small_bert_goes_on_bit_for_bit(tmp_path: Path) -> None:
    text = "obert-prune{sparsity=0.8,begin=2,end=8,frequency=3,block=8,scope=global}"
    start = Pipeline.parse(text).run(tiny_run.program())
    whole = trainer(start.copy())
    for _ in range(8):
        whole.advance()
    cut = trainer(start.copy())
    for _ in range(4):
        cut.advance()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(cut.checkpoint())
    saved = checkpoints.latest()
    assert saved is not None
    resumed = trainer(start.copy())
    resumed.restore(saved)
    for _ in range(4):
        resumed.advance()
    for name, tensor in whole.program.named_tensors().items():
        assert torch.equal(resumed.program.named_tensors()[name], tensor), name
    final = Pipeline.parse("fold-masks").run(whole.program)
    assert not find_masks(final)
    assert Property.MASKED not in final.properties
    assert final.facts(SparsityStats).encoder.sparsity == pytest.approx(0.8, abs=0.001)
