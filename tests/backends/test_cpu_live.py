"""Heads and neurons that nothing reads are left out, and results stay the same."""

from __future__ import annotations

import pytest
import torch

from sparsefx import Program
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import RUNNABLE, padded_batch, quantized
from tests.int8 import int8
from tests.programs import captured
from tests.tiny_models import example_batch

HEAD = 16


def weights(program: Program, part: str) -> list[torch.Tensor]:
    """Tensors of the linears whose weight's name ends so, as they are stored."""
    names = [n for n in program.named_tensors() if n.endswith(f"{part}.weight")]
    assert names, part
    return [program.tensor(name).detach() for name in names]


def without_outputs(program: Program) -> Program:
    """Head 1 is read by nothing; neither are 40 neurons."""
    for weight in weights(program, "attention.output.dense"):
        weight[:, HEAD : 2 * HEAD] = 0
    for weight in weights(program, "output.dense"):
        if weight.shape[1] == 128:
            weight[:, 50:90] = 0
    return program


def without_values(program: Program) -> Program:
    """Heads 0 and 3 have no values."""
    for weight in weights(program, "self.value"):
        weight[:HEAD] = weight[3 * HEAD :] = 0
    for name in program.named_tensors():
        if name.endswith("self.value.bias"):
            bias = program.tensor(name).detach()
            bias[:HEAD] = bias[3 * HEAD :] = 0
    return program


def largest_gap(program: Program, target: CpuTarget) -> float:
    """Largest difference of the logits."""
    batch = padded_batch(program, 3, 21)
    with torch.no_grad():
        gap = program(**batch)["logits"] - target.lower(program)(**batch)["logits"]
    return float(gap.abs().max())


@pytest.mark.parametrize("isa", RUNNABLE)
def test_dead_heads_and_neurons_are_left_out(isa: IsaName) -> None:
    target = CpuTarget(isa=isa, rates="built-in")
    program = without_outputs(captured("bert-cls"))
    for item, tolerance in ((program, 1e-5), (quantized(program, example_batch()), 1e-4)):
        assert largest_gap(item, target) < tolerance
        explained = str(target.lower(item).explain())
        # Two layers: 40 neurons and 16 channels of query, key and value each.
        assert "left out: 2 heads, 176 rows and 112 columns of linears" in explained
        assert "left out: 48 rows that nothing reads, 0 columns" in explained


def test_heads_without_values_are_left_out() -> None:
    target = CpuTarget(rates="built-in")
    program = without_values(captured("bert-cls"))
    for item, tolerance in ((program, 1e-5), (quantized(program, example_batch()), 1e-4)):
        assert largest_gap(item, target) < tolerance
        assert target.lower(item).explain().heads == 4


def test_after_the_quantize_passes() -> None:
    program = without_outputs(int8().copy())
    target = CpuTarget(attention="fp32", rates="built-in")
    assert largest_gap(program, target) < 2e-3
    assert target.lower(program).explain().heads == 2
    assert largest_gap(program, CpuTarget(rates="built-in")) < 1e-2


def test_all_heads_may_be_dead() -> None:
    program = captured("bert-cls")
    for weight in weights(program, "attention.output.dense"):
        weight.zero_()
    target = CpuTarget(rates="built-in")
    assert largest_gap(program, target) < 1e-5
    assert target.lower(program).explain().heads == 6


def test_what_is_read_elsewhere_stays() -> None:
    # ALBERT's layers share their weights: what is dead in one is dead in all.
    program = captured("albert")
    weight = weights(program, "attention.dense")[0]
    weight[:, :HEAD] = 0
    target = CpuTarget(rates="built-in")
    assert largest_gap(program, target) < 1e-5
    assert target.lower(program).explain().heads == 2
    whole = CpuTarget(rates="built-in").lower(captured("bert-cls"))
    assert "left out" not in str(whole.explain())
