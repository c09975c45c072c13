"""Attention with biases and windows by distance: kernels, what is read off models, whole models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.masks import DistanceTable, MaskReader
from sparsefx.backends.cpu.analyses.values import Mask
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.kernels.distances import FAR
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.measure.amx_check import distance_words, embed, run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError
from tests.backends.cpu_cases import RUNNABLE, engine, padded_batch, pool
from tests.int8 import int8
from tests.programs import captured
from tests.tiny_models import example_batch

Array = NDArray[Any]
HEADS = 3
ATTENTIONS: tuple[tuple[Literal["auto", "fp32"], float], ...] = (("fp32", 2e-3), ("auto", 5e-2))
"""With rounded softmax weights a value may move to the next code, and later layers carry it on."""


def attended(inputs: dict[str, Array], scale: float, biases: Array, mask: Array) -> Array:
    """Attention in double precision; q, k, v [sequences, tokens, heads, size]."""
    length, most = mask.shape[1], biases.shape[1] // 2
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    scores = np.einsum("bqhc,bkhc->bhqk", inputs["q"], inputs["k"]) * scale
    scores = scores + biases[:, np.clip(distance, -most, most) + most]
    scores = np.where(mask[:, None, None, :], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), inputs["v"])
    return np.asarray(mixed.reshape(*mask.shape, -1))


def run(isa: IsaName, kind: str, size: int, mask: Array, window: tuple[int, int]) -> float:
    """Largest difference of a kernel from the same in double precision, at real tokens."""
    rng = np.random.default_rng(size)
    biases = rng.normal(0, 3, (HEADS, 2 * 20 + 1)).astype(np.float32)
    before, after = window
    distance = np.arange(41) - 20
    biases[:, (distance > before) | (distance < -after)] = -1e30
    channels, steps = HEADS * size, []
    words: dict[str, Word] = {"heads": HEADS, "head_size": size, "scale": 0.3}
    inputs: dict[str, Array] = {}
    for name in "qkv":
        source = target = Buffer(name, channels, 4)
        values = rng.normal(0, 1, (mask.size, channels))
        if kind != "attention" and name != "v":
            values = rng.integers(0, 256, (mask.size, channels)).astype(np.float64)
        steps.append(embed(values, source))
        inputs[name] = values.reshape(*mask.shape, HEADS, size)
        if kind != "attention" and name != "v":
            target = Buffer(f"{name}.codes", channels, 1)
            quantize: dict[str, Word] = {"rows": channels, "input": source}
            quantize |= {"output_bytes": target, "inverse_scale": 1.0, "zero_point": 0}
            steps.append(Step(catalog.other("quantize"), quantize, target.name))
            words |= {"scale": 3e-4, "q_zero": 131}
        words |= {name: target, f"{name}_rows": channels}
    inputs["q"] = inputs["q"] - 131 * (kind != "attention")
    output = Buffer("y", channels, 4)
    words |= {"output": output, "output_rows": channels, **distance_words(biases, *window)}
    steps.append(Step(catalog.attention_by_distance(kind), words, "y"))
    found = run_steps(steps, [output], mask, engine(isa), pool(isa, 2))["y"]
    expected = attended(inputs, float(words["scale"]), biases, mask)  # type: ignore[arg-type]
    return float(np.abs(found - expected)[mask].max())


def masks(lengths: list[int], *, holes: bool = False) -> Array:
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    if holes:
        mask[:, 3 : max(lengths) - 2 : 5] = False
        mask[0, 2 : max(lengths) // 2] = False
        mask[-1, :4] = False
    return mask


@pytest.mark.parametrize("window", [(FAR, FAR), (5, 9), (0, FAR), (17, 0)])
@pytest.mark.parametrize("isa", RUNNABLE)
def test_fp32_attention_by_distance(isa: IsaName, window: tuple[int, int]) -> None:
    for size, lengths in ((8, [1, 17, 40]), (20, [130]), (3, [33, 64, 15, 90])):
        assert run(isa, "attention", size, masks(lengths), window) < 1e-5
    assert run(isa, "attention", 8, masks([70, 33, 20], holes=True), window) < 1e-5


@pytest.mark.parametrize("window", [(FAR, FAR), (5, 9)])
@pytest.mark.skipif("avx512_vnni" not in RUNNABLE, reason="this machine has no vpdpbusd")
def test_int8_attention_by_distance(window: tuple[int, int]) -> None:
    # On tiles the bits are the same: test_cpu_amx_attention.
    for size, lengths in ((8, [1, 17, 40]), (20, [130])):
        assert run("avx512_vnni", "attention_i8", size, masks(lengths), window) < 1e-5
    holes = masks([70, 33, 20], holes=True)
    assert run("avx512_vnni", "attention_i8", 16, holes, window) < 1e-5


class Biased(nn.Module):
    """Two layers of attention with what `bias` adds to [batch, heads, queries, keys]."""

    def __init__(self, bias: Callable[[Tensor], Tensor], positions: int = 0) -> None:
        super().__init__()
        self.words, self.bias = nn.Embedding(100, 32), bias
        self.table = nn.Embedding(positions or 1, 4)
        nn.init.normal_(self.table.weight, std=2)
        self.positions = positions
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.score = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) * 2
        batch, length = input_ids.shape
        places = torch.arange(length)
        distance = places[:, None] - places[None]
        if self.positions:
            bias = self.table(distance + self.positions // 2).permute(2, 0, 1)
        else:
            bias = self.bias(distance)
        hidden = (1 - attention_mask[:, None, None].float()) * -1e9
        for layer in self.layers:
            q, k, v = layer(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
            scores = (q @ k.transpose(-1, -2)) * 0.5 + bias + hidden
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        scored: Tensor = self.score(x)
        return scored


def linear_bias(distance: Tensor) -> Tensor:
    """As in ALiBi: it never ends."""
    return -distance.abs() * (2.0 ** -torch.arange(4.0))[:, None, None]


def window(distance: Tensor) -> Tensor:
    return torch.where((distance > 50) | (distance < -30), -torch.inf, 0.0)


def absolute(distance: Tensor) -> Tensor:
    return distance[:, :1] * 0.1 + distance * 0


@cache
def program_of(bias: Callable[[Tensor], Tensor], positions: int = 0) -> Program:
    """Only to look at."""
    torch.manual_seed(0)
    return sparsefx.capture(Biased(bias, positions).eval(), example_batch())


def gap(program: Program, compiled: CpuCompiled, rows: int, length: int, *, holes: bool) -> float:
    """Largest difference at real tokens, relative to the largest value."""
    batch = padded_batch(program, rows, length)
    if holes:
        batch["attention_mask"][:, 2:5] = 0
        batch["attention_mask"][0, 1 : length - 3] = 0
    with torch.no_grad():
        expected = next(iter(program(**batch).values()))
        difference = (expected - next(iter(compiled(**batch).values()))).abs()
    if difference.dim() == 3:
        difference = difference[batch["attention_mask"].bool()]
    return float(difference.max() / expected.abs().max())


@pytest.mark.parametrize(("bias", "longest"), [(linear_bias, 1024), (window, None)])
def test_biases_that_are_computed(
    bias: Callable[[Tensor], Tensor], longest: int | None, tmp_path: Path
) -> None:
    program = program_of(bias)
    assert CpuTarget().unsupported(program) == ()
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.listing().count("attention by distance") == 2
    for rows, length, holes in ((3, 21, False), (2, 150, False), (1, 1, False), (3, 90, True)):
        assert gap(program, compiled, rows, length, holes=holes) < 1e-5
    if longest is not None:
        loaded = load(compiled.save(tmp_path / "m"))
        for model in (compiled, loaded):
            with pytest.raises(ProgramError, match=str(longest)):
                model(**padded_batch(program, 1, longest + 1))


def test_a_table_of_biases_ends_where_the_model_does() -> None:
    program = program_of(linear_bias, positions=79)
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.listing().count("attention by distance") == 2
    assert gap(program, compiled, 2, 40, holes=False) < 1e-5
    with pytest.raises(ProgramError):
        compiled(**padded_batch(program, 2, 41))


def test_a_bias_by_position_is_left_to_pytorch() -> None:
    program = program_of(absolute)
    (found,) = CpuTarget(rates="built-in").unsupported(program)
    assert "more than padding and the distance of two tokens" in found.reason
    assert gap(program, CpuTarget(rates="built-in").lower(program), 2, 9, holes=False) < 1e-5


def test_a_bias_that_goes_on_beyond_what_can_be_tried_is_left_to_pytorch() -> None:
    program = program_of(linear_bias).copy()
    program.config["max_position_embeddings"] = 8192
    (found,) = CpuTarget(rates="built-in").unsupported(program)
    assert found.reason == "its bias by distance still changes beyond 1024 tokens"


def table_of(program: Program, name: str) -> DistanceTable | None:
    node = next(n for n in program.graph.nodes if n.name == name)
    meaning = MaskReader(Host(program)).read((Mask(node),))
    assert not isinstance(meaning, str), meaning
    return meaning.table


def test_what_is_read_off_a_model() -> None:
    program = captured("mpnet")
    found = table_of(program, "contiguous")
    assert found is not None
    # Buckets end at 128 (8 + log of distance up to 128); the last begins earlier.
    assert found.values.shape[0] == 4
    assert found.values.shape[1] < 300
    assert (found.before, found.after, found.longest) == (FAR, FAR, None)
    assert table_of(program, "where") is None
    bias = program.tensor("mpnet.encoder.relative_attention_bias.weight")
    np.testing.assert_array_equal(found.values[:, found.zero], bias[0].detach())
    np.testing.assert_array_equal(found.values[:, found.zero + 3], bias[3].detach())
    np.testing.assert_array_equal(found.values[:, found.zero - 3], bias[19].detach())


def loud(program: Program) -> Program:
    """MPNet whose biases, and what they weigh, matter."""
    for name, tensor in program.named_tensors().items():
        if name.endswith("relative_attention_bias.weight"):
            tensor.detach().mul_(60)
        elif tensor.dim() == 2:
            tensor.detach().mul_(5)
    return program


@pytest.mark.parametrize("isa", RUNNABLE)
def test_mpnet_is_taken_whole(isa: IsaName, tmp_path: Path) -> None:
    program = loud(captured("mpnet"))
    target = CpuTarget(isa=isa, rates="built-in")
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    assert compiled.explain().linears == (14, 0)
    cases = ((1, 1), (3, 21), (9, 70), (2, 300), (1, 510))
    for rows, length in cases:
        assert gap(program, compiled, rows, length, holes=False) < 1e-5
    assert gap(program, compiled, 4, 40, holes=True) < 1e-5
    if isa == RUNNABLE[0]:
        batch = padded_batch(program, 3, 40)
        batch["attention_mask"][1, 2:30] = 0
        loaded = load(compiled.save(tmp_path / "m"))
        found = loaded(**{name: value.numpy() for name, value in batch.items()})["logits"]
        np.testing.assert_array_equal(found, compiled(**batch)["logits"])


@pytest.mark.parametrize("isa", RUNNABLE)
def test_int8_mpnet(isa: IsaName) -> None:
    program = int8("mpnet")
    for attention, tolerance in ATTENTIONS:
        compiled = CpuTarget(isa=isa, attention=attention, rates="built-in").lower(program)
        kind = "attention_i8" if (isa, attention) == ("avx512_vnni", "auto") else "attention"
        assert compiled.listing().count(f"{kind} by distance") == 2
        assert gap(program, compiled, 3, 21, holes=False) < tolerance
        assert gap(program, compiled, 3, 40, holes=True) < tolerance


def test_dead_heads_take_their_biases_along() -> None:
    program = loud(captured("mpnet"))
    for name, tensor in program.named_tensors().items():
        if name.endswith("attn.o.weight"):
            tensor.detach()[:, 16:32] = 0
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().heads == 2
    assert gap(program, compiled, 3, 40, holes=False) < 1e-5
