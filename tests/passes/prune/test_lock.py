"""pattern-lock: zeros stay zero under momentum, weight decay and a schedule that is not over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PipelineError, TrainingError, VerifyError
from sparsefx.masks import find_masks
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.prune.lock import PatternLock
from sparsefx.passes.prune.masking import assert_none_revived, revived_weights
from sparsefx.properties import Property
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from sparsefx.verify import verify
from tests.tiny_models import example_batch, tiny

BATCH = {"x": torch.ones(4, 8)}


class Sparse(nn.Module):
    """One linear with zeros, one without, one that is all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse, self.dense, self.empty = (nn.Linear(8, 8, bias=False) for _ in range(3))
        with torch.no_grad():
            self.sparse.weight[:, ::2] = 0
            self.empty.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.empty(self.dense(self.sparse(x)))
        return y


@pytest.fixture
def plain() -> Program:
    return small_program(Sparse(), x=BATCH["x"])


@pytest.fixture(scope="module")
def bert() -> Program:
    return sparsefx.capture(tiny("bert-cls"), example_batch())


def test_before_and_after(plain: Program) -> None:
    after = """
        %mul = aten.mul.Tensor(%sparse_weight, %sparse_weight_mask)
        %linear = aten.linear(%x, %mul)
        %linear_1 = aten.linear(%linear, %dense_weight)
        %linear_2 = aten.linear(%linear_1, %empty_weight)
        return {output: %linear_2}
    """
    skipped = ["dense.weight: it has no zero", "empty.weight: all of it is zero"]
    locked = assert_pass(PatternLock(), plain, after, applied=1, skipped=skipped)
    assert locked.properties == {Property.MASKED, Property.LOCKED}
    assert_equal_outputs(plain, locked, BATCH)


def test_a_dense_model_does_not_match() -> None:
    program = small_program(nn.Linear(8, 8), input=torch.ones(4, 8))
    locked = Pipeline((PatternLock(on_no_match="ignore"),)).run(program)
    assert locked.history[-1].applied == 0
    assert not locked.properties
    assert not locked.active


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_survive_momentum_from_before_the_lock(bert: Program, kind: str) -> None:
    dense = bert.copy().train()
    optimizer = OPTIMIZERS[kind](list(dense.parameters()))
    steps(dense, optimizer, 4)
    locked = Pipeline.parse("magnitude-prune{sparsity=0.8},pattern-lock").run(dense)
    carried = OPTIMIZERS[kind](list(locked.parameters()))
    carried.load_state_dict(optimizer.state_dict())
    patterns = {s.weight: locked.tensor(s.weight) != 0 for s in find_masks(locked)}
    assert len(patterns) == 12
    drifted = 0
    for _ in range(6):
        backward(locked)
        carried.step()
        drifted += sum(revived_weights(locked).values())
        locked.step()
        for name, pattern in patterns.items():
            weight = locked.tensor(name)
            assert bool((weight[~pattern] == 0).all())
            assert torch.equal(weight != 0, pattern)
            assert torch.equal(locked.tensor(name + "_mask") != 0, pattern)
    assert drifted > 0, "without the lock, momentum would have moved zeros: the test tests it"


def steps(program: Program, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        backward(program)
        optimizer.step()
        program.step()


def backward(program: Program) -> None:
    program.module.zero_grad()
    torch.autograd.backward(program(**example_batch())["logits"].square().mean())


def test_it_ends_the_schedule_of_magnitude_prune(plain: Program) -> None:
    text = "magnitude-prune{sparsity=0.5,end=10,roles=other,include=dense},pattern-lock"
    locked = Pipeline.parse(text).run(plain)
    assert [str(item) for item in locked.active] == ["pattern-lock"]
    for _ in range(12):
        locked.step()
    assert bool((locked.tensor("dense.weight") != 0).all())


def test_soft_masks_are_baked_before_they_freeze(plain: Program) -> None:
    text = "magnitude-prune{sparsity=0.5,mask=soft,roles=other,include=dense}"
    soft = Pipeline.parse(text).run(plain)
    assert bool((soft.tensor("dense.weight") != 0).all())
    locked = Pipeline.parse("pattern-lock").run(soft)
    assert float((locked.tensor("dense.weight") == 0).float().mean()) == 0.5
    assert_equal_outputs(soft, locked, BATCH)


def test_a_zero_under_a_kept_mask_is_locked_too(plain: Program) -> None:
    text = "magnitude-prune{sparsity=0.25,begin=9,end=9,roles=other,include=sparse},pattern-lock"
    locked = Pipeline.parse(text).run(plain)
    assert float(locked.tensor("sparse.weight_mask").mean()) == 0.5


def test_a_lock_goes_on_after_save_and_load(plain: Program, tmp_path: Path) -> None:
    locked = Program.load(Pipeline((PatternLock(),)).run(plain).save(tmp_path / "locked"))
    with torch.no_grad():
        locked.tensor("sparse.weight").add_(1.0)
    assert revived_weights(locked) == {"sparse.weight": 32}
    with pytest.raises(TrainingError, match=r"32 locked weights are not zero: sparse\.weight"):
        assert_none_revived(locked)
    locked.step()
    assert_none_revived(locked)


def test_no_pass_may_revive_a_locked_weight(plain: Program) -> None:
    locked = Pipeline((PatternLock(),)).run(plain)
    with torch.no_grad():
        locked.tensor("sparse.weight").add_(1.0)
    with pytest.raises(VerifyError, match=r"32 locked weights of sparse\.weight are not zero"):
        verify(locked)


def test_nan_in_a_locked_weight_is_found(plain: Program) -> None:
    locked = Pipeline((PatternLock(check_every=2),)).run(plain)
    with torch.no_grad():
        locked.tensor("sparse.weight")[0, 0] = torch.nan
    locked.step()
    with pytest.raises(TrainingError, match=r"at sparse\.weight: 1 locked weights are not zero"):
        locked.step()


def test_nan_that_no_mask_hides_is_no_matter_of_locks(plain: Program) -> None:
    locked = Pipeline((PatternLock(),)).run(plain)
    with torch.no_grad():
        locked.tensor("sparse.weight")[0, 1] = torch.nan
    verify(locked)


@pytest.mark.parametrize("text", ["distill,pattern-lock", "pattern-lock,distill"])
def test_masks_of_a_teacher_stay_as_they_are(text: str) -> None:
    student, teacher = (
        Pipeline.parse(f"magnitude-prune{{sparsity={share},mask=soft,roles=other}}").run(
            small_program(nn.Linear(8, 4), input=torch.ones(2, 8))
        )
        for share in (0.25, 0.75)
    )
    hidden = teacher.tensor("weight")[teacher.tensor("weight_mask") == 0]
    assert bool((hidden != 0).all()), "a teacher that is not locked: the test tests it"
    locked = Pipeline.parse(text).run(student, programs={"teacher": teacher})
    (notes,) = (entry.notes for entry in locked.history if entry.spec == "pattern-lock")
    assert notes == ("1 masks taken over, 0 made from zeros",)
    locked.step()
    assert_none_revived(locked)
    verify(locked)
    for name in ("weight", "weight_mask"):
        assert torch.equal(locked.tensor(f"teacher.{name}"), teacher.tensor(name))
    stripped = Pipeline.parse("strip-distillation").run(locked)
    assert set(stripped.named_tensors()) == {"weight", "weight_mask", "bias"}


def test_a_second_lock_is_refused(plain: Program) -> None:
    with pytest.raises(PipelineError, match="run 'fold-masks' before it"):
        Pipeline.parse("pattern-lock,pattern-lock").run(plain)


@dataclass(frozen=True)
class Dropping(Pass):
    """Masks one more column after every step, and knows nothing of the passes of this package."""

    name: ClassVar[str] = "dropping"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.MASKED})

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        mask = ctx.rewriter.add_buffer("dense.weight_mask", torch.ones(8, 8))
        weight = ctx.rewriter.get("dense.weight")
        with ctx.rewriter.before(next(iter(weight.users))):
            product = ctx.rewriter.call(torch.ops.aten.mul.Tensor, weight, mask)
        ctx.rewriter.replace(weight, product, erase=False)
        program.active = (*program.active, self)
        return PassReport(1)

    def after_step(self, program: Program, step: int) -> None:
        program.tensor("dense.weight_mask")[:, step - 1] = 0


def test_a_pass_of_somebody_else_is_ended(plain: Program) -> None:
    program = Pipeline((Dropping(),)).run(plain)
    program.step()
    locked = Pipeline.parse("pattern-lock").run(program)
    assert [item.name for item in locked.active] == ["pattern-lock"]
    before = locked.tensor("dense.weight_mask").clone()
    locked.step()
    assert torch.equal(locked.tensor("dense.weight_mask"), before)
    assert int((before == 0).sum()) == 8


def test_verify_sees_what_an_optimizer_revived(plain: Program) -> None:
    locked = Pipeline.parse("pattern-lock").run(plain)
    verify(locked)
    weight = locked.tensor("sparse.weight")
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()  # and no locked.step()
    with pytest.raises(VerifyError, match=r"32 locked weights of sparse\.weight are not"):
        verify(locked)
    locked.tensor("sparse.weight_mask").fill_(0.5)
    with pytest.raises(VerifyError, match="holds values other than 0 and 1"):
        verify(locked)


@pytest.mark.parametrize(("steps", "told"), [(0, True), (3, True), (4, False)])
@pytest.mark.parametrize("ends", ["pattern-lock", "fold-masks"])
def test_a_ramp_that_is_cut_short_is_told(
    steps: int, told: bool, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = small_program(nn.Linear(8, 4), input=torch.randn(2, 8))
    ramp = Pipeline.parse("magnitude-prune{sparsity=0.5,end=4,roles=other}").run(plain)
    for _ in range(steps):
        ramp.step()
    notes = " ".join(Pipeline.parse(ends).run(ramp).history[-1].notes)
    sentence = f"ends {4 - steps} steps before its ramp does, after {steps} calls of program.step()"
    assert (sentence in notes) == (sentence in caplog.text) == told
    assert ("its ramp" in notes) == told
