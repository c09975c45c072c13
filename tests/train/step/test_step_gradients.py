"""Passes that work after a step see the gradients of that step, clipped, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.program import Program
from sparsefx.recipe import OptimizerSettings, Training
from sparsefx.train.data.batches import encode
from sparsefx.train.step.processes import Processes
from sparsefx.train.trainer import StageTrainer
from tests.train import tiny_run

CLIP = 0.5


@dataclass(frozen=True)
class Watch(Pass):
    """Hands the norm of all gradients to ``tell`` after every step."""

    name: ClassVar[str] = "watch"
    tell: Callable[[float], None] = print

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Nothing to do."""
        return PassReport(0)

    def after_step(self, program: Program, step: int) -> None:
        """Tell the norm."""
        found = [each.grad for each in program.parameters() if each.grad is not None]
        self.tell(float(torch.nn.utils.get_total_norm(found)))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_session_leaves_clipped_gradients_to_passes(parts: int) -> None:
    program = tiny_run.program().copy()
    seen: list[float] = []
    program.active = (Watch(seen.append),)
    given = tiny_run.data()
    rate = OptimizerSettings(learning_rate=1e-3)
    settings = Training(steps=4, clip=CLIP, optimizer=rate, accumulate=parts)
    examples = encode(given.tokenizer, given.task.split("train"), 16)
    trainer = StageTrainer(
        "one",
        settings,
        program,
        examples,
        "classification",
        steps=4,
        batch_size=8,
        seed=0,
        processes=Processes("cpu", 60.0),
    )
    told = [event.gradient_norm for _ in range(4) for event in trainer.advance()]
    assert seen == pytest.approx([min(norm or 0.0, CLIP) for norm in told], rel=1e-4)
    assert all(each.grad is None for each in program.parameters())


def test_a_plain_loop_may_accumulate() -> None:
    program = tiny_run.program().copy()
    seen: list[float] = []
    program.active = (Watch(seen.append),)
    inputs = tiny_run.example_inputs(tiny_run.data())
    optimizer = torch.optim.SGD(program.parameters(), lr=0.0)
    for batches in (1, 3):
        for _ in range(batches):
            torch.autograd.backward(program(**inputs)["logits"].square().mean())
        optimizer.step()
        program.step()
        optimizer.zero_grad()
    assert seen[1] == pytest.approx(3 * seen[0], rel=1e-4)
