"""Inputs that are unusual or wrong: a right result or an error that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsefx import Program, capture
from sparsefx.backends.cpu.artifact import LoadedModel, load
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError
from tests.backends.cpu_cases import padded_batch
from tests.programs import captured
from tests.tiny_models import example_batch, tiny

Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def program() -> Program:
    return captured("bert-cls")


@pytest.fixture(scope="module")
def compiled(program: Program) -> CpuCompiled:
    return CpuTarget(rates="built-in").lower(program)


@pytest.fixture(scope="module")
def loaded(compiled: CpuCompiled, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("saved") / "m"
    return load(compiled.save(folder))


@pytest.fixture
def batch(program: Program) -> Batch:
    return padded_batch(program, 3, 21)


def arrays(batch: Batch) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def test_no_inputs_at_all(program: Program) -> None:
    fresh = CpuTarget(rates="built-in").lower(program)
    for _ in range(2):
        with pytest.raises(ProgramError, match="'input_ids' is missing"):
            fresh()


def test_padding_where_the_head_reads(
    program: Program, loaded: LoadedModel, batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    batch["attention_mask"][1] = torch.arange(21) >= 4
    fresh = CpuTarget(rates="built-in").lower(program)
    for _ in range(2):
        found = fresh(**batch)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(found, program(**batch)["logits"], rtol=0, atol=1e-6)
    assert caplog.text.count("sequences begin with padding") == 1
    with pytest.raises(ProgramError, match="begins with padding"):
        loaded(**arrays(batch))
    batch["attention_mask"][1] = 0  # nothing is real: all tokens are taken as real
    assert loaded(**arrays(batch))["logits"].shape == (3, 2)


@pytest.mark.parametrize("shape", [(0, 21), (3, 0)])
def test_empty(
    program: Program, compiled: CpuCompiled, loaded: LoadedModel, shape: tuple[int, int]
) -> None:
    empty = {name: torch.zeros(shape, dtype=torch.int64) for name in program.signature.input_names}
    with pytest.raises(ProgramError, match="is empty"):
        compiled(**empty)
    with pytest.raises(ProgramError, match="is empty"):
        loaded(**arrays(empty))


def test_longer_than_the_positions(
    program: Program, compiled: CpuCompiled, loaded: LoadedModel
) -> None:
    long = {n: torch.ones(1, 600, dtype=torch.int64) for n in program.signature.input_names}
    with pytest.raises(ProgramError, match="600 tokens; the model has positions for 512"):
        compiled(**long)
    with pytest.raises(ProgramError, match=r"a text of 600 tokens; the model takes 512[^$]*512\)"):
        loaded(**arrays(long))


def test_longer_than_a_table_of_positions_that_is_cut() -> None:
    batch = example_batch()
    types = torch.zeros_like(batch["input_ids"])
    program = capture(tiny("bert-cls"), {**batch, "token_type_ids": types})
    compiled = CpuTarget(rates="built-in").compile(program)
    long = {n: torch.ones(1, 600, dtype=torch.int64) for n in program.signature.input_names}
    with pytest.raises(ProgramError, match="a text of 600 tokens; the model takes 512"):
        compiled(**{**long, "token_type_ids": 0 * long["input_ids"]})


def test_padding_alone_changes_no_other_sequence(
    program: Program, compiled: CpuCompiled, batch: Batch
) -> None:
    expected = compiled(**batch)["logits"]
    mask = batch["attention_mask"].clone()
    mask[1] = 0
    found = compiled(**{**batch, "attention_mask": mask})["logits"]
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-6)
    alone = compiled(
        **{name: value[1:2] for name, value in batch.items()} | {"attention_mask": mask[1:2]}
    )
    assert torch.isfinite(alone["logits"]).all()


def test_any_order_of_memory(compiled: CpuCompiled, loaded: LoadedModel, batch: Batch) -> None:
    expected = compiled(**batch)["logits"]
    turned = {name: value.t().contiguous().t() for name, value in batch.items()}
    spread = {name: value.repeat_interleave(2, 1)[:, ::2] for name, value in batch.items()}
    for other in (turned, spread):
        assert not other["input_ids"].is_contiguous()
        torch.testing.assert_close(compiled(**other)["logits"], expected, rtol=0, atol=0)
        np.testing.assert_array_equal(loaded(**arrays(other))["logits"], expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.bool, torch.float32])
def test_masks_of_other_types(
    compiled: CpuCompiled, loaded: LoadedModel, batch: Batch, dtype: torch.dtype
) -> None:
    other = {**batch, "attention_mask": batch["attention_mask"].to(dtype)}
    with pytest.raises(ProgramError, match=r"attention_mask\.to\(torch\.int64\)"):
        compiled(**other)
    if dtype is torch.float32:
        with pytest.raises(ProgramError, match="cpu at attention_mask: expected integers, got fl"):
            loaded(**arrays(other))
        return
    found = loaded(**arrays(other))["logits"]
    np.testing.assert_array_equal(found, compiled(**batch)["logits"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_masks_of_other_types(dtype: torch.dtype) -> None:
    batch = example_batch()
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    program = capture(tiny("bert-cls"), batch).eval()
    found = CpuTarget(rates="built-in").lower(program)(**batch)["logits"]
    torch.testing.assert_close(found, program(**batch)["logits"], rtol=0, atol=1e-6)


def test_int32_ids(compiled: CpuCompiled, loaded: LoadedModel, batch: Batch) -> None:
    other = {name: value.int() for name, value in batch.items()}
    with pytest.raises(ProgramError, match=r"expected input_ids: int64.*got int32"):
        compiled(**other)
    np.testing.assert_array_equal(loaded(**arrays(other))["logits"], compiled(**batch)["logits"])


def test_another_device(compiled: CpuCompiled, loaded: LoadedModel, batch: Batch) -> None:
    away = {**batch, "input_ids": batch["input_ids"].to("meta")}
    with pytest.raises(ProgramError, match="on meta; this model runs on the CPU"):
        compiled(**away)
    with pytest.raises(ProgramError, match="cpu at input_ids: expected an array of integers"):
        loaded(**away)


class WithFeatures(nn.Module):
    """Numbers of each text, such as its age, beside its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.widen = nn.Linear(10, 16)

    def forward(self, features: Tensor, input_ids: Tensor) -> Tensor:
        found: Tensor = self.linear(self.table(input_ids)) + self.widen(features)[:, None]
        return found


def test_an_input_of_another_shape_may_come_before_the_tokens() -> None:
    model = WithFeatures().eval()
    tokens = torch.randint(1, 50, (3, 13))
    example = {"features": torch.randn(2, 10), "input_ids": tokens[:2, :8]}
    compiled = CpuTarget(rates="built-in").compile(capture(model, example))
    given = {"features": torch.randn(3, 10), "input_ids": tokens}
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given)["output"], model(**given))
    apart = compiled.explain(2, 8, timed=True).apart
    assert apart is not None
    assert apart > 0
