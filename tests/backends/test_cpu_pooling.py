"""Sentence vectors: means over real tokens, and vectors of length 1."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.isa import IsaName
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import RUNNABLE, padded_batch
from tests.backends.test_cpu_models import difference
from tests.programs import captured
from tests.tiny_models import example_batch


class Pooled(nn.Module):
    """Attention with a window, and what a sentence becomes; the mean is spelled in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words, self.qkv = nn.Embedding(100, 40), nn.Linear(40, 120)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        batch, length = input_ids.shape
        x = self.words(input_ids)
        q, k, v = self.qkv(x).view(batch, length, 3, 5, 8).permute(2, 0, 3, 1, 4).unbind(0)
        places = torch.arange(length)
        near = (places[:, None] - places[None]).abs() < 20
        mask = attention_mask[:, None, None].bool() & near
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        x = x + mixed.transpose(1, 2).flatten(2)
        real = attention_mask.unsqueeze(-1)
        if self.way == "expanded":
            real = real.expand(x.size()).float()
        total = (x * real).sum(1) if self.way != "all" else x.sum(1)
        count = attention_mask.sum(1, keepdim=True)
        if self.way == "expanded":
            count = real.sum(1).clamp(min=1e-9)
        if self.way == "constant":
            count = torch.full((1, 1), 7.0)
        return {"embedding": nn.functional.normalize(total / count)}


@cache
def program_of(way: str) -> Program:
    torch.manual_seed(0)
    return sparsefx.capture(Pooled(way).eval(), example_batch())


@pytest.mark.parametrize(
    ("isa", "way"), [*((isa, "plain") for isa in RUNNABLE), (RUNNABLE[-1], "expanded")]
)
def test_means_of_real_tokens(isa: IsaName, way: str, tmp_path: Path) -> None:
    program = program_of(way)
    target = CpuTarget(isa=isa, rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    for rows, length in ((1, 1), (3, 21), (19, 40), (2, 150)):
        assert difference(program, compiled, padded_batch(program, rows, length)) < 1e-6
    batch = padded_batch(program, 3, 60)
    batch["attention_mask"][:, 4:9] = batch["attention_mask"][0, 1:30] = 0
    assert difference(program, compiled, batch) < 1e-6
    if isa == RUNNABLE[0]:
        loaded = load(compiled.save(tmp_path / "m"))
        found = loaded(**{name: value.numpy() for name, value in batch.items()})["embedding"]
        np.testing.assert_array_equal(found, compiled(**batch)["embedding"])


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("all", "a sum that is not over the real tokens of a sequence"),
        ("constant", "a sum of tokens that is not divided by their number"),
    ],
)
def test_other_sums_are_left_to_pytorch(way: str, why: str) -> None:
    program = program_of(way)
    target = CpuTarget(rates="built-in")
    assert [found.reason for found in target.unsupported(program)] == [why]
    compiled = target.lower(program)
    batch = padded_batch(program, 3, 21)
    if way == "all":
        batch["attention_mask"][:] = 1
    assert difference(program, compiled, batch) < 1e-6


class Unmasked(nn.Module):
    """Attention that sees padding, before a mean, or an attention, that does not."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.words = way, nn.Embedding(100, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids).unflatten(-1, (2, 8)).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        if self.way == "attention":
            mask = attention_mask[:, None, None].bool()
            x = nn.functional.scaled_dot_product_attention(x, x, x, mask)
            return {"embedding": x.transpose(1, 2).flatten(2)}
        x = x.transpose(1, 2).flatten(2)
        total = (x * attention_mask.unsqueeze(-1)).sum(1)
        return {"embedding": total / attention_mask.sum(1, keepdim=True)}


@pytest.mark.parametrize("way", ["mean", "attention"])
def test_what_sees_padding_is_not_mixed_with_what_does_not(way: str) -> None:
    program = sparsefx.capture(Unmasked(way), example_batch())
    target = CpuTarget(rates="built-in")
    assert len(target.unsupported(program)) == 1
    assert difference(program, target.lower(program), padded_batch(program, 3, 21)) < 1e-6


def test_a_sentence_encoder_is_taken_whole() -> None:
    program = Pipeline.parse("pool-sentences").run(captured("mpnet"))
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    assert [kind in compiled.listing() for kind in (" mean ", " unit ")] == [True, True]
    assert difference(program, compiled, padded_batch(program, 3, 21)) < 1e-6
