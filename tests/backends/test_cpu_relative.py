"""Attention with products of relative positions, as DeBERTa has it: kernels and whole models."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.kernels.distances import FAR
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.measure.amx_check import distance_words, embed, run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError
from tests.backends.cpu_cases import ARM_MODELS, RUNNABLE, engine, padded_batch, pool
from tests.int8 import int8
from tests.tiny_models import example_batch, tiny

Array = NDArray[Any]
HEADS = 3
FAR_AWAY = 25
"""Distance beyond which the tables of the kernel's tests do not change."""


def panels(table: Array) -> Array:
    """[heads, size, 2 n + 1] by distance from -n on, as the kernel reads it."""
    heads, size, places = table.shape
    zero = -(-(places // 2) // 16) * 16 + 16
    distances = np.clip(np.arange(-zero, zero), -(places // 2), places // 2) + places // 2
    cut = table[:, :, distances].reshape(heads, size, 2 * zero // 16, 16)
    return np.ascontiguousarray(cut.transpose(0, 2, 1, 3), np.float32)


def expected(
    inputs: dict[str, Array], tables: dict[str, Array], biases: Array, mask: Array
) -> Array:
    """The same in double precision; q, k, v [sequences, tokens, heads, size], a scale of 0.3."""
    length = mask.shape[1]
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    near = np.clip(distance, -FAR_AWAY, FAR_AWAY) + FAR_AWAY
    scores = np.einsum("bqhc,bkhc->bhqk", inputs["q"], inputs["k"])
    scores += np.einsum("bqhc,hcqk->bhqk", inputs["q"], tables["of_queries"][:, :, near])
    scores += np.einsum("bkhc,hcqk->bhqk", inputs["k"], tables["of_keys"][:, :, near])
    most = biases.shape[1] // 2
    scores = scores * 0.3 + biases[:, np.clip(distance, -most, most) + most]
    scores = np.where(mask[:, None, None, :], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), inputs["v"])
    return np.asarray(mixed.reshape(*mask.shape, -1))


def run(isa: IsaName, kinds: str, size: int, mask: Array, window: tuple[int, int]) -> float:
    """Largest difference of a kernel from the same in double precision, at real tokens."""
    rng = np.random.default_rng(size)
    channels, steps = HEADS * size, []
    biases = rng.normal(0, 1, (HEADS, 2 * 20 + 1)).astype(np.float32)
    distance = np.arange(41) - 20
    biases[:, (distance > window[0]) | (distance < -window[1])] = -1e30
    words: dict[str, Word] = {"heads": HEADS, "head_size": size, "scale": 0.3}
    inputs: dict[str, Array] = {}
    for name in "qkv":
        source = Buffer(name, channels, 4)
        values = rng.normal(0, 1, (mask.size, channels))
        steps.append(embed(values, source))
        inputs[name] = values.reshape(*mask.shape, HEADS, size)
        words |= {name: source, f"{name}_rows": channels}
    tables: dict[str, Array] = {}
    for kind in ("of_queries", "of_keys"):
        tables[kind] = rng.normal(0, 1, (HEADS, size, 2 * FAR_AWAY + 1)) * (kind in kinds)
        words[kind] = panels(tables[kind])
    known = panels(tables["of_keys"])
    words |= {"position_step": known.strides[0], "position_last": known.shape[1] - 1}
    words |= {"position_zero": known.shape[1] // 2, **distance_words(biases, *window)}
    output = Buffer("y", channels, 4)
    words |= {"output": output, "output_rows": channels}
    kernel = catalog.attention_by_position(
        of_queries="of_queries" in kinds, of_keys="of_keys" in kinds
    )
    steps.append(Step(kernel, words, "y"))
    found = run_steps(steps, [output], mask, engine(isa), pool(isa, 2))["y"]
    return float(np.abs(found - expected(inputs, tables, biases, mask))[mask].max())


def masks(lengths: list[int], *, holes: bool = False) -> Array:
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    if holes:
        mask[:, 3 : max(lengths) - 2 : 5] = False
        mask[-1, :4] = False
    return mask


BOTH = "of_queries of_keys"


@pytest.mark.parametrize(
    ("isa", "kinds"),
    [(RUNNABLE[0], "of_queries"), (RUNNABLE[0], "of_keys")]
    + [(isa, BOTH) for isa in (*RUNNABLE, *ARM_MODELS[:1])],
)
def test_the_kernel_adds_products_with_positions(isa: IsaName, kinds: str) -> None:
    everything = (FAR, FAR)
    for size, lengths in ((8, [1, 17, 40]), (20, [130]), (3, [33, 64, 15, 90]), (5, [275, 129])):
        assert run(isa, kinds, size, masks(lengths), everything) < 1e-5
    assert run(isa, kinds, 8, masks([70, 33, 20], holes=True), everything) < 1e-5
    assert run(isa, kinds, 8, masks([150]), (5, 9)) < 1e-5


def deberta(layers: int = 2, **settings: Any) -> Program:
    """A tiny DeBERTa whose positions have something to say."""
    sizes = {"hidden_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}
    kinds = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}
    config: Any = DebertaV2Config(**{**sizes, **kinds, **settings})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model: Any = DebertaV2ForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.data.mul_(20 if "rel_embeddings" in name else 6)
    return sparsefx.capture(model.eval(), example_batch())


@cache
def shared() -> Program:
    """One such model; only to look at."""
    return deberta()


def batches(program: Program, *, longest: int = 64) -> list[dict[str, Tensor]]:
    """A token, odd lengths, padding at the end and between real tokens, the longest."""
    shapes = ((1, 1), (3, 21), (2, 17), (2, longest))
    found = [padded_batch(program, *shape) for shape in shapes]
    found[1]["attention_mask"][0, 3:6] = 0
    found[1]["attention_mask"][1, 2:9] = 0
    return found


def largest(program: Program, target: CpuTarget, given: list[dict[str, Tensor]]) -> float:
    """Largest difference of a logit from the reference."""
    assert target.unsupported(program) == ()
    compiled = target.lower(program)
    found = [compiled(**batch)["logits"] - program(**batch)["logits"] for batch in given]
    return max(float(difference.detach().abs().max()) for difference in found)


VARIANTS: list[dict[str, Any]] = [
    {"pos_att_type": ["c2p"], "share_att_key": True, "embedding_size": 24},
    {"pos_att_type": ["p2c"], "norm_rel_ebd": "layer_norm", "type_vocab_size": 2},
    {"pos_att_type": []},
]
UNBOUNDED: list[dict[str, Any]] = [
    {"share_att_key": True, "norm_rel_ebd": "layer_norm"},
    {"position_buckets": -1, "max_relative_positions": 20},
    {"position_buckets": 8, "max_relative_positions": 20},
]
"""Without embeddings of absolute positions, so sequences may be of any length."""


@pytest.mark.parametrize("isa", RUNNABLE)
def test_deberta_is_taken_whole(isa: IsaName) -> None:
    program = shared()
    target = CpuTarget(isa=isa, rates="built-in")
    assert "attention by position" in target.lower(program).listing()
    assert largest(program, target, batches(program)) < 1e-5


def test_positions_change_the_logits() -> None:
    """Else the tests would not see whether a kernel adds anything."""
    program, batch = shared().copy(), example_batch()
    for name, tensor in program.named_tensors().items():
        if "pos_query_proj" in name:
            tensor.data.zero_()
    difference = (program(**batch)["logits"] - shared()(**batch)["logits"]).detach()
    assert float(difference.abs().max()) > 1e-2


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_variants_of_deberta_are_taken_whole(settings: dict[str, Any]) -> None:
    program = deberta(layers=1, **settings)
    assert largest(program, CpuTarget(rates="built-in"), batches(program)) < 1e-5


@pytest.mark.parametrize("settings", UNBOUNDED, ids=str)
def test_positions_go_on_beyond_their_buckets(settings: dict[str, Any]) -> None:
    program = deberta(layers=1, **settings, position_biased_input=False)
    given = batches(program, longest=200)
    assert largest(program, CpuTarget(rates="built-in"), given) < 1e-5


@pytest.mark.parametrize("isa", RUNNABLE)
def test_int8_models_add_positions_in_fp32(isa: IsaName) -> None:
    program = int8("deberta", zeros=0.5)
    target = CpuTarget(isa=isa, rates="built-in")
    assert "attention by position" in target.lower(program).listing()
    assert largest(program, target, batches(program)) < 1e-4


def test_fixed_sizes_are_taken_whole() -> None:
    given = example_batch(2, 9)
    program = sparsefx.capture(tiny("deberta"), given, dynamic=False)
    assert largest(program, CpuTarget(rates="built-in"), [given]) < 1e-5


def test_several_threads_and_sequences() -> None:
    program = shared()
    given = [padded_batch(program, 9, 60), padded_batch(program, 1, 50)]
    assert largest(program, CpuTarget(threads=2, rates="built-in"), given) < 1e-5


WITHOUT_TORCH = """
import sys
import numpy as np
from sparsefx.backends.cpu.artifact import load
folder, given, made = sys.argv[1:]
np.savez(made, **load(folder)(**np.load(given)))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_saved_models_need_no_torch(kind: str, tmp_path: Path) -> None:
    program = shared() if kind == "fp32" else int8("deberta", zeros=0.5)
    compiled = CpuTarget(rates="built-in").compile(program)
    folder = compiled.save(tmp_path / "m")
    batch = padded_batch(program, 3, 21)
    arrays: dict[str, Any] = {name: value.numpy() for name, value in batch.items()}
    expected = compiled(**batch)["logits"].numpy()
    np.testing.assert_array_equal(load(folder)(**arrays)["logits"], expected)
    if kind == "fp32":
        np.savez(tmp_path / "in.npz", **arrays)
        paths = [str(folder), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *paths], check=True)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["logits"], expected)


def test_a_convolution_runs_in_pytorch() -> None:
    program = deberta(conv_kernel_size=3, layers=1)
    compiled = CpuTarget(rates="built-in").lower(program)
    assert any("conv1d" in found.reason for found in compiled.outside)
    batch = padded_batch(program, 2, 17)
    torch.testing.assert_close(compiled(**batch)["logits"], program(**batch)["logits"])


class Gathering(nn.Module):
    """A layer of attention whose queries gather products with a table by what `index` says."""

    def __init__(self, index: str) -> None:
        super().__init__()
        self.words, self.table = nn.Embedding(100, 16), nn.Parameter(torch.randn(16, 300))
        self.qkv, self.score, self.index = nn.Linear(16, 48), nn.Linear(16, 2), index

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(self.words(input_ids)).chunk(3, -1))
        places = torch.arange(input_ids.shape[1])
        distance = places[:, None] - places[None]
        index = {
            "distance": distance.clamp(-90, 90) + 90,
            "first": distance.clamp(-90, 90) + 90,
            "endless": distance.abs() // 8,
            "places": places[:, None] * 2 + places[None],
            "padding": (distance.abs() + attention_mask[0, 0]),
        }[self.index]
        sequences = 1 if self.index == "first" else input_ids.shape[0]
        index = index.expand(sequences, 1, *distance.shape)
        table = self.table if self.index == "endless" else self.table[None, None]
        scores = q @ k.transpose(-1, -2) + (q @ table).gather(-1, index) * 2
        scores = scores / 4 + (1 - attention_mask[:, None, None].float()) * -1e9
        scored: Tensor = self.score((scores.softmax(-1) @ v).squeeze(1))
        return scored


@cache
def gathering(index: str) -> Program:
    torch.manual_seed(0)
    return sparsefx.capture(Gathering(index).eval(), example_batch(2, 9))


@pytest.mark.parametrize("index", ["places", "padding", "first"])
def test_other_gathers_run_in_pytorch(index: str) -> None:
    program = gathering(index)
    said = "what its positions add depends on more than the distance of two tokens"
    if index == "first":
        said = "gathers from a part of the products"
    assert [found.reason for found in CpuTarget().unsupported(program)] == [said]
    batch = example_batch(3, 21)
    found = CpuTarget(rates="built-in").lower(program)(**batch)
    torch.testing.assert_close(found, program(**batch))


@pytest.mark.parametrize("length", [1, 300])
def test_a_hand_written_attention_with_positions(length: int) -> None:
    program, batch = gathering("distance"), example_batch(2, length)
    target = CpuTarget(rates="built-in")
    assert target.unsupported(program) == ()
    found, real = target.lower(program)(**batch)["output"], batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], program(**batch)["output"][real], rtol=0, atol=1e-5)


def test_a_sequence_longer_than_known_positions_is_an_error() -> None:
    program = gathering("endless")
    compiled = CpuTarget(rates="built-in").lower(program)
    batch = {name: ids[:1] for name, ids in example_batch(2, 40).items()}
    torch.testing.assert_close(compiled(**batch), program(**batch), rtol=0, atol=1e-5)
    with pytest.raises(ProgramError, match="2049"):
        compiled(**example_batch(1, 2049))
