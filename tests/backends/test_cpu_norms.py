"""Norms: the kernels, the spellings of an RMS norm that are found, and an encoder that has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.norms import find_norms
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.kernels.norm import CHUNKS
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.measure.amx_check import embed, run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import (
    ARM_MODELS,
    EMULATED,
    RUNNABLE,
    engine,
    padded_batch,
    pool,
    quantized,
)
from tests.backends.test_cpu_models import difference
from tests.tiny_models import example_batch

ALL = [*RUNNABLE, *EMULATED, *ARM_MODELS]


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from(ALL),
    tokens=st.integers(1, 200),
    channels=st.integers(1, 70),
    centred=st.booleans(),
    ways=st.sampled_from(["floats", "octets", "both"]),
    seed=st.integers(0, 99),
)
def test_the_kernels(
    isa: IsaName, tokens: int, channels: int, centred: bool, ways: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(tokens, channels)) * 3 + 1).astype(np.float32)
    weight, bias = rng.normal(size=(2, channels)).astype(np.float32)
    source, target = Buffer("x", channels, 4), Buffer("y", channels, 4)
    codes, widened = Buffer("q", channels, 1), Buffer("w", channels, 4)
    shared: dict[str, Word] = {"rows": channels, "input": source, "space": 0}
    shared |= {"sums": Buffer("s", 2 * CHUNKS, 4)}
    words = {**shared, "weight": weight, "epsilon": 1e-3} | ({"bias": bias} if centred else {})
    floats, octets = ways != "octets", ways != "floats"
    words |= {"output": target} if floats else {}
    if octets:
        words |= {"output_bytes": codes, "inverse_scale": 1 / 0.05, "zero_point": 100}
    kernel = catalog.norm_kernel(floats=floats, octets=octets, centred=centred)
    assert catalog.named(kernel.spec) is kernel
    sums = catalog.other("norm_sums" if centred else "rms_norm_sums")
    steps = [embed(x, source), Step(sums, shared, "s"), Step(kernel, words, "y")]
    wanted = [target] * floats
    if octets:
        expand: dict[str, Word] = {"rows": channels, "input": codes, "output": widened}
        steps.append(Step(catalog.other("expand"), expand | {"scale": 1.0}, "w"))
        wanted.append(widened)
    mask = np.ones((1, tokens), np.bool_)
    found = run_steps(steps, wanted, mask, engine(isa), pool(isa, 2))
    y = x.astype(np.float64)
    y = y - y.mean(1, keepdims=True) if centred else y
    y = y / np.sqrt((y * y).mean(1, keepdims=True) + 1e-3) * weight
    y = y + bias if centred else y
    if floats:
        np.testing.assert_allclose(found["y"].reshape(y.shape), y, atol=2e-5)
    if octets:
        expected = np.clip(np.rint(y / 0.05) + 100, 0, 255)
        assert np.abs(found["w"].reshape(y.shape) - expected).max() <= 1


class Rms(nn.Module):
    """An RMS norm that is spelled in one of several ways."""

    def __init__(self, way: str, size: int) -> None:
        super().__init__()
        self.way = way
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.way](x, self.weight)


def _llama(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-4)
    return weight * wide.to(x.dtype)


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": lambda x, weight: nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-4),
    "torch without epsilon": lambda x, weight: nn.functional.rms_norm(x, x.shape[-1:], weight),
    "llama": _llama,
    "divided": lambda x, weight: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-4) * weight,
    "gemma": lambda x, weight: (
        x * torch.pow(x.square().mean(-1, keepdim=True) + 1e-4, -0.5) * (1.0 + weight)
    ),
    "without a weight": lambda x, weight: (
        x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + 1e-4)
    ),
    "over tokens": lambda x, weight: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-4),
    "with a mean": lambda x, weight: (
        x * torch.rsqrt((x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-4)
    ),
}
"""What is and, the last two, what is not an RMS norm over the channels."""


class Encoder(nn.Module):
    """Norms before attention and before a gated layer; a norm after both."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.norms = nn.ModuleList(Rms(way, 32) for way in ways)
        self.qkv, self.out = nn.Linear(32, 96, bias=False), nn.Linear(32, 32, bias=False)
        self.up, self.gate = nn.Linear(32, 40, bias=False), nn.Linear(32, 40, bias=False)
        self.down = nn.Linear(40, 32, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        batch, length = input_ids.shape
        x = self.words(input_ids)
        mask = attention_mask[:, None, None].bool()
        for first, second in zip(self.norms[0::2], self.norms[1::2], strict=True):
            heads = self.qkv(first(x)).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
            q, k, v = heads.unbind(0)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            y = second(x)
            x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return {"hidden": x}


@cache
def program_of(*ways: str) -> Program:
    torch.manual_seed(0)
    return sparsefx.capture(Encoder(*ways).eval(), example_batch())


def test_every_spelling_is_one_kernel(tmp_path: Path) -> None:
    ways = list(SPELLINGS)[:6]
    program = program_of(*ways)
    found = list(find_norms(program, Host(program)).values())
    epsilons = [torch.finfo(torch.float32).eps if "epsilon" in way else 1e-4 for way in ways]
    assert [norm.epsilon for norm in found] == pytest.approx(epsilons)
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    assert compiled.listing().count("rms_norm   ") == len(ways)
    batch = padded_batch(program, 3, 40)
    assert difference(program, compiled, batch) < 1e-4
    loaded = load(compiled.save(tmp_path / "m"))
    found_ = loaded(**{name: value.numpy() for name, value in batch.items()})["hidden"]
    real = batch["attention_mask"].bool().numpy()
    np.testing.assert_array_equal(found_[real], compiled(**batch)["hidden"].numpy()[real])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_norms_are_found_whatever_the_floats_of_the_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ways = list(SPELLINGS)[:6]
    program = sparsefx.capture(Encoder(*ways).eval().to(dtype), example_batch())
    found = list(find_norms(program, Host(program)).values())
    unsaid = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    epsilons = [unsaid if "epsilon" in way else 1e-4 for way in ways]
    assert [norm.epsilon for norm in found] == pytest.approx(epsilons)
    compiled = CpuTarget(rates="built-in").compile(program)
    tolerance = 1e-5 if dtype == torch.float64 else 2e-2
    assert difference(program, compiled, padded_batch(program, 3, 21)) < tolerance


@pytest.mark.parametrize("way", ["over tokens", "with a mean"])
def test_other_quotients_are_left_to_pytorch(way: str) -> None:
    program = program_of("torch", way)
    assert len(find_norms(program, Host(program))) == 1
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program)
    batch = padded_batch(program, 2, 9)
    batch["attention_mask"][:] = 1
    assert difference(program, target.lower(program), batch) < 1e-5


@pytest.mark.parametrize("isa", ALL)
def test_norms_of_an_encoder(isa: IsaName) -> None:
    program = program_of("torch", "llama")
    batch = padded_batch(program, 3, 40)
    for each in (program, quantized(program, batch)):
        target = CpuTarget(isa=isa, rates="built-in", attention="fp32")
        assert target.unsupported(each) == ()
        compiled = target.lower(each)
        assert compiled.listing().count("rms_norm   ") == 2
        assert difference(each, compiled, batch) < (1e-4 if each is program else 0.05)


def test_the_encoder_of_t5_is_taken_whole() -> None:
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    model: nn.Module = T5EncoderModel(config)
    program = sparsefx.capture(model.eval(), example_batch())
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    kinds = [line.split()[1] for line in compiled.listing().splitlines()]
    assert (kinds.count("rms_norm"), kinds.count("attention")) == (5, 2)
    assert difference(program, compiled, padded_batch(program, 3, 40)) < 1e-5
