"""Embedding tables: int8 rows with a scale each stay int8, and give the bits of fp32 tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsefx import Pipeline, Program
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.kernels.embed import FIRST_INDEX_TABLE, Stored
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.measure.amx_check import run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ArtifactError, ProgramError
from sparsefx.huggingface import plain_weights
from sparsefx.rewrite import Rewriter
from sparsefx.testing import small_program
from tests.backends.cpu_cases import ARM_MODELS, EMULATED, RUNNABLE, engine, padded_batch, pool
from tests.programs import captured

ALL = [*RUNNABLE, *EMULATED, *ARM_MODELS]
IDS = torch.tensor([[0, 3, 8, 2], [8, 8, 1, 5]])


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from(ALL),
    tokens=st.integers(1, 200),
    channels=st.integers(1, 70),
    tables=st.lists(st.sampled_from(["int8", "fp32"]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_the_kernel_adds_rows_to_the_bit(
    isa: IsaName, tokens: int, channels: int, tables: list[Stored], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    padding = ((0, 0), (0, -channels % 16))
    words: dict[str, Word] = {"rows": channels, "stride": channels + padding[1][1]}
    wanted = []
    for n, stored in enumerate(tables):
        table = rng.normal(size=(tokens, channels)).astype(np.float32)
        if stored == "int8":
            codes = rng.integers(-128, 128, (tokens, channels)).astype(np.int8)
            scales = rng.uniform(1e-4, 1, tokens).astype(np.float32)
            words |= {f"table{n}": np.pad(codes, padding), f"scales{n}": scales}
            table = codes.astype(np.float32) * scales[:, None]
        words |= {f"indices{n}": FIRST_INDEX_TABLE}
        words.setdefault(f"table{n}", np.pad(table, padding))
        wanted.append(table)
    total = wanted[0]
    for table in wanted[1:]:
        total = total + table
    kernel, target = catalog.embedding(*tables), Buffer("y", channels, 4)
    assert catalog.named(json.loads(json.dumps(kernel.spec))) is kernel
    mask = np.ones((1, tokens), np.bool_)
    steps = [Step(kernel, words | {"output": target}, "y")]
    found = run_steps(steps, [target], mask, engine(isa), pool(isa, 2))["y"]
    np.testing.assert_array_equal(found.reshape(tokens, channels), total)


def small(program: Program) -> Program:
    """With int8 tables."""
    return Pipeline.parse("quantize-embeddings").run(program.eval())


def unpacked(program: Program, integers: Program) -> Program:
    """The program before `quantize-embeddings`, with the floats that its tables stand for now."""
    own = program.copy().eval()
    rewriter = Rewriter(own, "unpacked")
    floats = plain_weights(integers)
    for name in _tables(integers):
        rewriter.set_tensor(name, floats[name])
    rewriter.finish()
    return own


def _tables(program: Program) -> list[str]:
    return [n for n, tensor in program.named_tensors().items() if tensor.dtype == torch.int8]


def stored(compiled: CpuCompiled) -> list[str]:
    """Types of the tables, as `explain` lists them."""
    return [kind for each in compiled.explain().embeddings for kind, _, _ in each.tables]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("architecture", ["bert-cls", "roberta", "distilbert"])
def test_whole_models_give_the_bits_of_fp32_tables(architecture: str, isa: IsaName) -> None:
    program = captured(architecture)
    integers = small(program)
    floats = unpacked(program, integers)
    batch = padded_batch(program, 3, 21)
    target = CpuTarget(isa=isa, rates="built-in")
    ours, theirs = target.compile(integers), target.compile(floats)
    assert set(stored(ours)) == {"int8"}
    assert set(stored(theirs)) == {"fp32"}
    expected = integers(**batch)
    for name, value in ours(**batch).items():
        assert torch.equal(value, theirs(**batch)[name])
        real = batch["attention_mask"] == 1 if value.dim() == 3 else ...
        torch.testing.assert_close(value[real], expected[name][real], rtol=1e-4, atol=1e-5)


def test_a_loaded_model_reads_them_and_is_smaller(tmp_path: Path) -> None:
    program = captured("bert-cls")
    integers = small(program)
    floats = unpacked(program, integers)
    batch = padded_batch(program, 3, 21)
    folders = [
        CpuTarget(rates="built-in").compile(each).save(tmp_path / name)
        for name, each in (("int8", integers), ("fp32", floats))
    ]
    arrays = {name: value.numpy() for name, value in batch.items()}
    ours, theirs = (load(folder)(**arrays)["logits"] for folder in folders)
    np.testing.assert_array_equal(ours, theirs)
    sizes = [(folder / "cpu" / "weights.bin").stat().st_size for folder in folders]
    shapes = [integers.tensor(name).shape for name in _tables(integers)]
    saved = sum(rows * (3 * channels - 4) for rows, channels in shapes)
    assert sizes[1] - sizes[0] == pytest.approx(saved, abs=64 * 2 * len(shapes))


def test_a_plan_of_an_older_version_is_refused(tmp_path: Path) -> None:
    folder = CpuTarget(rates="built-in").compile(captured("bert-cls")).save(tmp_path / "m")
    manifest = folder / "cpu" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 5}))
    with pytest.raises(ArtifactError, match=r"format 5; this version reads 6") as caught:
        load(folder)
    assert caught.value.where == str(manifest)
    Program.load(folder)  # from which a plan of this version is made


class Scaled(nn.Module):
    """Embeddings of tokens times a number, as many encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 20), nn.Linear(20, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.linear(self.table(input_ids) * math.sqrt(20))
        return x


def test_a_factor_goes_into_the_scales() -> None:
    integers = small(small_program(Scaled().eval(), input_ids=IDS))
    compiled = CpuTarget(rates="built-in").compile(integers)
    assert stored(compiled) == ["int8"]
    found = compiled(input_ids=IDS)["output"]
    torch.testing.assert_close(found, integers(input_ids=IDS)["output"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ProgramError, match="index 9 into an embedding of 9 rows"):
        compiled(input_ids=IDS + 1)


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({"weight_zero_point": torch.ones(9, dtype=torch.int32)}, ["fp32"]),
        ({"weight": torch.arange(180).reshape(9, 20).to(torch.uint8)}, ["fp32"]),
        ({"weight_scale": torch.tensor(0.5), "weight_zero_point": torch.tensor(0)}, ["int8"]),
    ],
    ids=["a zero that is not 0", "unsigned", "one scale for all"],
)
def test_other_quantizations(changed: dict[str, Any], kinds: list[str]) -> None:
    integers = small(small_program(Scaled().eval(), input_ids=IDS))
    rewriter = Rewriter(integers, "changed")
    for name, value in changed.items():
        rewriter.set_tensor(f"table.{name}", value)
    rewriter.finish()
    compiled = CpuTarget(rates="built-in").lower(integers)
    assert stored(compiled) == kinds
    found = compiled(input_ids=IDS)["output"]
    torch.testing.assert_close(found, integers(input_ids=IDS)["output"], rtol=1e-5, atol=1e-4)


def test_explain_says_how_tables_are_stored() -> None:
    program = captured("bert-cls")
    compiled = CpuTarget(rates="built-in").compile(small(program))
    said = str(compiled.explain()).splitlines()[1]
    rows, channels = program.tensor("bert.embeddings.word_embeddings.weight").shape
    assert f"tables int8 [{rows}, {channels}], " in said
    assert "; int8 rows have a scale each; " in said
    (found,) = compiled.explain().embeddings
    assert found.stored_bytes == sum(n * (m + 4) for _, n, m in found.tables)
    assert said.endswith(f"; {found.stored_bytes:,} bytes")
    plain = CpuTarget(rates="built-in").compile(program).explain()
    assert f"tables fp32 [{rows}, {channels}], " in plain.summary()
    assert "int8" not in str(plain.embeddings[0])
