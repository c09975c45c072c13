"""Rotary positions: the kernel, the spellings that are found, ModernBERT whole."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.analyses.axes import BATCH, SEQUENCE, Channels, Layout
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.rotary import find_rotations
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.measure.amx_check import embed, run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError
from tests.backends.cpu_cases import RUNNABLE, engine, padded_batch, pool, quantized
from tests.backends.test_cpu_models import difference
from tests.int8 import int8
from tests.programs import captured
from tests.tiny_models import example_batch


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("heads", "size", "tokens"), [(3, 8, 1), (1, 6, 40), (2, 16, 130)])
def test_the_kernel(isa: IsaName, heads: int, size: int, tokens: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(size=(tokens, 5 + heads * size)).astype(np.float32)
    factors = rng.normal(size=(tokens, 2 * size)).astype(np.float32)
    partner = rng.permutation(size)
    source, table = Buffer("x", x.shape[1], 4), Buffer("f", 2 * size, 4)
    target = Buffer("y", heads * size, 4)
    words: dict[str, Word] = {"heads": heads, "head_size": size, "first": 5, "partner": partner}
    words |= {"input": source, "input_rows": source.rows, "factors": table, "output": target}
    steps = [embed(x, source), embed(factors, table)]
    steps.append(Step(catalog.other("rotate"), words, "y"))
    mask = np.ones((1, tokens), np.bool_)
    found = run_steps(steps, [target], mask, engine(isa), pool(isa, 2))["y"]
    split = x[:, 5:].reshape(tokens, heads, size)
    own, other = factors[:, None, :size], factors[:, None, size:]
    expected = split * own + split[..., partner] * other
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


class Turned(nn.Module):
    """Attention with rotary positions, spelled in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words = nn.Embedding(100, 32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.out, self.score = nn.Linear(32, 32), nn.Linear(32, 2)
        angles = torch.arange(64.0)[:, None] * 0.7 ** torch.arange(1.0, 5)
        self.register_buffer("angles", angles)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        batch, length = input_ids.shape
        places = torch.arange(length)
        angles: Tensor = places[:, None].float() * self.angles[1]  # type: ignore[index]
        if self.way == "table":
            angles = self.angles[:length]  # type: ignore[index]
        if self.way == "counted":
            angles = (attention_mask.cumsum(-1) - 1)[:, None, :, None] * self.angles[1]  # type: ignore[index]
        q, k, v = (part(x).view(batch, length, 4, 8) for part in (self.query, self.key, self.value))
        if self.way == "first":
            q, k = (self.turned(p, angles[:, None]).transpose(1, 2) for p in (q, k))
        else:
            q, k = (self.turned(p.transpose(1, 2), angles) for p in (q / 2, k))
        mask = attention_mask[:, None, None].bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v.transpose(1, 2), mask)
        scored: Tensor = self.score(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return scored

    def turned(self, x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        if self.way == "pairs":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        if self.way == "halves":
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        if self.way == "partial":
            a, b, rest = x[..., :2], x[..., 2:4], x[..., 4:]
            cos, sin = cos[..., :2], sin[..., :2]
            return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin


@cache
def program_of(way: str) -> Program:
    """Only to look at."""
    torch.manual_seed(0)
    return sparsefx.capture(Turned(way).eval(), example_batch())


@pytest.mark.parametrize("way", ["first", "table", "pairs", "halves", "partial"])
def test_spellings_are_found(way: str) -> None:
    program = program_of(way)
    rotations = find_rotations(program, Host(program))
    assert len(rotations) == 2
    # Query and key are turned alike, so they share one table.
    (turn,) = {found.turn for found in rotations.values()}
    expected = {"pairs": [1, 0, 3, 2, 5, 4, 7, 6], "partial": [2, 3, 0, 1, 4, 5, 6, 7]}
    assert turn.partner.tolist() == expected.get(way, [4, 5, 6, 7, 0, 1, 2, 3])
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().linears == (5, 0)
    assert compiled.listing().count(" rotate ") == 2
    assert compiled.listing().count(" positions") == 1
    for rows, length in ((3, 21), (1, 1), (2, 64)):
        assert difference(program, compiled, padded_batch(program, rows, length)) < 1e-5
    batch = padded_batch(program, 3, 30)
    batch["attention_mask"][:, 3:9] = 0
    assert difference(program, compiled, batch) < 1e-5


def test_a_table_of_angles_ends_where_the_model_does() -> None:
    compiled = CpuTarget(rates="built-in").lower(program_of("table"))
    with pytest.raises(ProgramError, match="a text of 65 tokens; the model takes 64"):
        compiled(**padded_batch(program_of("table"), 1, 65))


def test_positions_that_inputs_decide_are_left_to_pytorch() -> None:
    program = program_of("counted")
    assert find_rotations(program, Host(program)) == {}
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().linears[1] > 0
    assert difference(program, compiled, padded_batch(program, 3, 21)) < 1e-5


def test_codes_are_not_kept_where_heads_are_turned() -> None:
    program = program_of("halves")
    program = quantized(program, example_batch(3, 21))
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().linears == (5, 0)
    assert difference(program, compiled, padded_batch(program, 3, 21)) < 2e-2


def test_heads_in_any_order() -> None:
    heads, last = (Channels(4, 8),), (Channels(8),)
    for dims in (((BATCH,), heads, (SEQUENCE,), last), ((BATCH,), (SEQUENCE,), heads, last)):
        assert Layout(dims).turned_heads() == (4, 8)
    assert Layout(((BATCH,), (Channels(4, 9),), (SEQUENCE,), last)).turned_heads() is None
    assert Layout(((BATCH,), (SEQUENCE,), last)).turned_heads() is None


def loud(program: Program) -> Program:
    """ModernBERT whose positions matter."""
    for tensor in program.named_tensors().values():
        if tensor.dim() == 2:
            tensor.detach().mul_(5)
    return program


def test_modernbert_is_taken_whole(tmp_path: Path) -> None:
    program = loud(captured("modernbert"))
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().linears == (10, 0)
    # 64 tokens before and after are seen in the second layer.
    for rows, length in ((1, 1), (3, 21), (5, 100), (2, 300)):
        gap = difference(program, compiled, padded_batch(program, rows, length))
        assert gap < 1e-4  # of logits up to 8
    batch = padded_batch(program, 3, 300)
    batch["attention_mask"][:, 4:9] = batch["attention_mask"][1, 2:200] = 0
    assert difference(program, compiled, batch) < 1e-4
    loaded = load(compiled.save(tmp_path / "m"))
    found = loaded(**{name: value.numpy() for name, value in batch.items()})["logits"]
    np.testing.assert_array_equal(found, compiled(**batch)["logits"])


@pytest.mark.parametrize("isa", RUNNABLE)
def test_modernbert_on_every_instruction_set(isa: IsaName) -> None:
    for program, tolerance in ((captured("modernbert"), 1e-5), (int8("modernbert"), 2e-3)):
        target = CpuTarget(isa=isa, rates="built-in")
        assert target.unsupported(program) == ()
        compiled: Any = target.lower(program)
        assert compiled.explain().linears == (10, 0)
        for rows, length in ((3, 21), (2, 150)):
            gap = difference(program, compiled, padded_batch(program, rows, length))
            assert gap < tolerance
