"""distill between the passes that it is used with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsefx import Pipeline, Program
from sparsefx.testing import assert_equal_outputs
from tests.programs import shared
from tests.tiny_models import example_batch

PRUNE = "magnitude-prune{sparsity=0.8},pattern-lock"
DISTILL = "distill{labels=1.0,hidden=1.0,scores=1.0}"


def run(text: str, program: Program) -> Program:
    return Pipeline.parse(text).run(program, programs={"teacher": shared("bert-cls", "sdpa", 1)})


def train(program: Program, steps: int = 3) -> Program:
    optimizer = torch.optim.AdamW(program.train().parameters(), lr=1e-3)
    for step in range(steps):
        given = {**example_batch(4, 10, seed=step), "labels": torch.tensor([0, 1, 1, -100])}
        optimizer.zero_grad()
        torch.autograd.backward(program(**given)["loss"])
        optimizer.step()
        program.step()
    return program.eval()


def density(program: Program) -> float:
    weight = program.tensor("bert.encoder.layer.0.attention.self.query.weight")
    return int(torch.count_nonzero(weight)) / weight.numel()


@pytest.mark.parametrize(
    "order",
    [
        f"decompose-attention,{PRUNE},{DISTILL},quantize-prepare",
        f"decompose-attention,{DISTILL},{PRUNE},quantize-prepare",
        f"decompose-attention,simplify,{DISTILL},quantize-prepare",
    ],
)
def test_the_main_job_in_any_order(order: str) -> None:
    student = shared("bert-cls")
    prepared = run(order, student)
    teacher = {n: t.clone() for n, t in prepared.named_tensors().items() if n.startswith("teacher")}
    assert teacher
    assert all(name.removeprefix("teacher.") in student.named_tensors() for name in teacher)
    program = train(prepared)
    for name, tensor in teacher.items():
        assert torch.equal(program.tensor(name), tensor), name
    if PRUNE in order:
        assert density(program) == pytest.approx(0.2, abs=0.01)
    stripped = run("strip-distillation", program)
    assert_equal_outputs(stripped, run("strip-distillation", program), example_batch())
    end = "fold-masks,quantize-convert" if PRUNE in order else "quantize-convert"
    final = run(end, stripped)
    assert final.signature == student.signature
    assert not any(name.startswith(("teacher.", "distill.")) for name in final.named_tensors())
    assert_equal_outputs(stripped, final, example_batch(), tolerance=1e-5)


def test_masks_and_teacher_come_out_in_any_order() -> None:
    student = run("decompose-attention", shared("bert-cls"))
    masked = run(PRUNE, student)
    both = run(f"{DISTILL}", masked)
    assert run("strip-distillation", both).fingerprint() == masked.fingerprint()


def test_under_autocast() -> None:
    program = run(f"decompose-attention,{DISTILL}", shared("bert-cls")).train()
    given: dict[str, Tensor] = {**example_batch(4, 10), "labels": torch.tensor([0, 1, 1, 0])}
    with torch.autocast("cpu", torch.bfloat16):
        loss = program(**given)["loss"]
    torch.autograd.backward(loss)
    assert loss.dtype is torch.float32
    grads = [p.grad for p in program.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    with torch.no_grad():
        exact = program.eval()(**given)["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = program(**given)["loss"]
    assert float(rounded) == pytest.approx(float(exact), rel=0.05)
