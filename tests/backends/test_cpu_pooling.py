"""Sentence vectors: means over real tokens, and vectors of length 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import ARM_MODELS, RUNNABLE, padded_batch, quantized
from tests.backends.test_cpu_models import difference
from tests.programs import captured
from tests.tiny_models import example_batch


class Pooled(nn.Module):
    """Attention with a window, and what a sentence becomes, spelled in some ways."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.ways = ways
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
        pooled = {way: POOLINGS[way](x, attention_mask) for way in self.ways}
        return {way: nn.functional.normalize(value) for way, value in pooled.items()}


def _expanded(x: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1).expand(x.size()).float()
    return (x * real).sum(1) / real.sum(1).clamp(min=1e-9)


def _bmm(x: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(mask[:, None].float(), x).squeeze(1) / mask.sum(1, keepdim=True)


def _weighted(x: Tensor, mask: Tensor) -> Tensor:
    return ((mask / mask.sum(1, keepdim=True))[:, None] @ x)[:, 0]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda x, mask: (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "expanded": _expanded,
    "filled": lambda x, mask: (
        x.masked_fill((mask == 0)[..., None], 0.0).sum(1) / mask.sum(1)[..., None]
    ),
    "chosen": lambda x, mask: (
        torch.where(mask[..., None].bool(), x, 0.0).mean(1)
        * (mask.shape[1] / mask.sum(1, keepdim=True))
    ),
    "bmm": _bmm,
    "weighted": _weighted,
    "einsum": lambda x, mask: (
        torch.einsum("bs,bsd->bd", mask.float(), x) / mask.sum(1, keepdim=True)
    ),
    "all": lambda x, mask: x.sum(1) / mask.sum(1, keepdim=True),
    "constant": lambda x, mask: (x * mask[..., None]).sum(1) / torch.full((1, 1), 7.0),
    "filled by one": lambda x, mask: (
        x.masked_fill((mask == 0)[..., None], 1.0).sum(1) / mask.sum(1)[..., None]
    ),
    "greatest": lambda x, mask: x.masked_fill((mask == 0)[..., None], -1e9).max(1).values,
    "greatest chosen": lambda x, mask: torch.where(mask[..., None].bool(), x, -1e9).max(1).values,
    "greatest of all": lambda x, mask: x.amax(1),
}
"""Poolings of states [batch, sequence, channels] by a mask [batch, sequence]."""
MEANS = ("plain", "expanded", "filled", "chosen", "bmm", "weighted", "einsum")


@cache
def program_of(*ways: str) -> Program:
    torch.manual_seed(0)
    return sparsefx.capture(Pooled(*ways).eval(), example_batch())


def test_spellings_of_the_mean() -> None:
    program = program_of(*MEANS)
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    assert compiled.listing().count(" mean ") == len(MEANS)
    batch = padded_batch(program, 3, 21)
    batch["attention_mask"][:, 4:9] = 0
    assert difference(program, compiled, batch) < 1e-6


@pytest.mark.parametrize("isa", [*RUNNABLE, *ARM_MODELS])
def test_means_in_int8(isa: IsaName) -> None:
    program = program_of("plain")
    batch = padded_batch(program, 3, 21)
    program = quantized(program, batch)
    target = CpuTarget(isa=isa, rates="built-in", attention="fp32")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    assert "mean" in compiled.listing()
    assert difference(program, compiled, batch) < 1e-6


@pytest.mark.parametrize("isa", [*RUNNABLE, *ARM_MODELS])
def test_means_of_real_tokens(isa: IsaName, tmp_path: Path) -> None:
    program = program_of("plain")
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
        found = loaded(**{name: value.numpy() for name, value in batch.items()})["plain"]
        np.testing.assert_array_equal(found, compiled(**batch)["plain"])


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("all", "a sum that is no such mean"),
        ("constant", "a sum that is no such mean"),
        ("filled by one", "fills in something else than what hides a key"),
        ("greatest", "fills in states"),
        ("greatest chosen", "fills in states"),
        ("greatest of all", "a maximum"),
    ],
)
def test_other_sums_are_left_to_pytorch(way: str, why: str) -> None:
    program = program_of(way)
    target = CpuTarget(rates="built-in")
    (found,) = target.unsupported(program)
    assert found.reason.startswith(why)
    compiled = target.lower(program)
    # Where padding counts, a plan that leaves it out would hand over other values.
    assert ("padding counts there" in found.reason) == (way in ("all", "greatest of all"))
    assert ("attention" in compiled.listing().split("outside")[0]) == ("all" not in way)
    assert difference(program, compiled, padded_batch(program, 3, 21)) < 1e-6


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


class ByPosition(nn.Module):
    """A sum whose tokens have weights by position, for ten positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.weights = nn.Embedding(100, 16), nn.Parameter(torch.rand(10, 1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        weights = self.weights[torch.arange(input_ids.shape[1])] * attention_mask[..., None]
        return {"embedding": (self.words(input_ids) * weights).sum(1)}


def test_a_table_that_ends_before_the_trials_is_no_error() -> None:
    program = sparsefx.capture(ByPosition().eval(), example_batch(2, 7))
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program)
    assert difference(program, target.lower(program), padded_batch(program, 3, 9)) < 1e-6
