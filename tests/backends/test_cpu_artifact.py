"""What `save` writes: it runs without torch, and nothing damaged is taken."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.codegen.engine import shared_engine
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.machine.private import cache_folder
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ArtifactError, ProgramError, TargetError
from tests.backends.cpu_cases import padded_batch, quantized, sparse_
from tests.programs import captured
from tests.tiny_models import example_batch


@pytest.fixture(scope="module")
def program() -> Program:
    return quantized(sparse_(captured("bert-cls"), 0.1), example_batch())


@pytest.fixture(scope="module")
def compiled(program: Program) -> CpuCompiled:
    return CpuTarget(threads=2).compile(program)


@pytest.fixture
def saved(compiled: CpuCompiled, tmp_path: Path) -> Path:
    return compiled.save(tmp_path / "model")


WITHOUT_TORCH = """
import sys
import numpy as np
from sparsefx.backends.cpu.artifact import load
batch = dict(np.load(sys.argv[2]))
model = load(sys.argv[1], threads=2)
np.savez(sys.argv[3], **model(**batch))
from sparsefx.backends.cpu.codegen.engine import shared_engine
compiled = shared_engine(model._runtime.isa).compiled
assert compiled == 0, compiled
assert "torch" not in sys.modules
"""


def test_it_runs_without_torch_and_compiles_nothing(
    program: Program, compiled: CpuCompiled, saved: Path, tmp_path: Path
) -> None:
    batch = padded_batch(program, 3, 21)
    arrays: dict[str, Any] = {name: value.numpy() for name, value in batch.items()}
    np.savez(tmp_path / "in.npz", **arrays)
    arguments = [str(saved), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    # The process has the user's key, but no objects of its own: the code comes from the folder.
    cache = tmp_path / "cache" / "sparsefx" / "cpu"
    cache.mkdir(parents=True)
    folder = cache_folder()
    assert folder is not None
    shutil.copy(folder / "key", cache / "key")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    subprocess.run(command, check=True, env=environment)
    found = np.load(tmp_path / "out.npz")["logits"]
    np.testing.assert_array_equal(found, compiled(**batch)["logits"].numpy())


def test_a_user_without_a_home_compiles_each_time(
    program: Program, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    batch = padded_batch(program, 2, 9)
    arrays = {name: value.numpy() for name, value in batch.items()}
    expected = load(saved)(**arrays)["logits"]
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    shared_engine.cache_clear()  # as in a process of its own
    try:
        np.testing.assert_array_equal(load(saved)(**arrays)["logits"], expected)
        assert cache_folder() is None
    finally:
        shared_engine.cache_clear()


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "electra", "bert-tok"])
def test_architectures(architecture: str, tmp_path: Path) -> None:
    program = captured(architecture)
    compiled = CpuTarget().compile(program)
    model = load(compiled.save(tmp_path / "m"))
    batch = padded_batch(program, 3, 11)
    actual, mask = model(**batch), batch["attention_mask"].numpy()
    for name, value in compiled(**batch).items():
        shown, expected = actual[name], value.numpy()
        if expected.shape[:2] == mask.shape:
            shown, expected = shown[mask == 1], expected[mask == 1]
        np.testing.assert_array_equal(shown, expected)


def test_the_program_is_there_too(program: Program, saved: Path) -> None:
    loaded = Program.load(saved)
    assert loaded.fingerprint() == program.fingerprint()
    assert "outside" not in CpuTarget().lower(loaded).listing()


def test_what_needs_pytorch_is_saved_as_a_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Softplus()).eval()
    program = sparsefx.capture(model, {"input": torch.zeros(2, 8, dtype=torch.int64)})
    compiled = CpuTarget().compile(program)
    folder = compiled.save(tmp_path / "m")
    assert "a part runs in PyTorch" in caplog.text
    if (folder / "cpu").exists():
        pytest.fail("a softplus runs in PyTorch")
    with pytest.raises(ArtifactError, match="no plan was saved here"):
        load(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_damage_is_refused(saved: Path, name: str, damage: str) -> None:
    path = saved / "cpu" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 1]) if damage == "altered" else b""
        path.write_bytes(content[:middle] + changed + content[middle + 1 :] * (damage == "altered"))
    with pytest.raises(ArtifactError):
        load(saved)


def test_code_of_another_user_is_not_loaded(
    program: Program, compiled: CpuCompiled, saved: Path
) -> None:
    for path in (saved / "cpu" / "code").iterdir():
        path.write_bytes(bytes(32) + path.read_bytes()[32:][::-1])
    batch = padded_batch(program, 2, 9)
    expected = compiled(**batch)["logits"]
    np.testing.assert_array_equal(load(saved)(**batch)["logits"], expected)


def test_another_instruction_set_is_refused(saved: Path) -> None:
    path = saved / "cpu" / "plan.json"
    plan = json.loads(path.read_text())
    plan["isa"] = "neon"
    path.write_text(json.dumps(plan))
    manifest = json.loads((saved / "cpu" / "manifest.json").read_text())
    from sparsefx.storage.files import file_hash

    manifest["sha256"]["plan.json"] = file_hash(path)
    (saved / "cpu" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="lacks neon"):
        load(saved)


def test_wrong_inputs(program: Program, saved: Path) -> None:
    model = load(saved)
    batch = {n: v.numpy() for n, v in padded_batch(program, 2, 9).items()}
    with pytest.raises(ProgramError, match="batch is empty"):
        model(**{name: value[:0] for name, value in batch.items()})
    with pytest.raises(ProgramError, match=r"given by name\n  hint: compiled\(input_ids=..., "):
        model(*batch.values())
    with pytest.raises(ProgramError, match=r"cpu at attention_mask: .* is missing.*\n  hint: "):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ProgramError, match=r"cpu at input_id: .*\n  hint: .* 'input_ids'"):
        model(input_id=batch["input_ids"])
    with pytest.raises(ProgramError, match="expected integers"):
        model(**{**batch, "input_ids": batch["input_ids"].astype(float)})
    with pytest.raises(ProgramError, match=r"cpu at inputs: .* one shape .*\n  hint: "):
        model(**{**batch, "input_ids": batch["input_ids"][:, 1:]})
    with pytest.raises(ProgramError, match="into an embedding of"):
        model(**{**batch, "input_ids": batch["input_ids"] + 10_000})
    longer = {name: torch.tile(torch.tensor(v), (1, 60)) for name, v in batch.items()}
    with pytest.raises(ProgramError, match="tokens; the model takes"):
        model(**longer)


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_says_how_it_comes_into_another_process(
    attempt: Callable[[object], object], compiled: CpuCompiled, saved: Path
) -> None:
    for model in (compiled, load(saved)):
        with pytest.raises(TargetError, match=r"pickled or copied\n.*cpu\.artifact\.load"):
            attempt(model)


def test_what_was_given_in_place_of_a_plan_is_named(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "run" / "stages" / "1-dense" / "program")
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "model.onnx").write_text("")
    stage = tmp_path / "run" / "stages" / "1-dense"
    for place, told in (
        (tmp_path / "none", "there is no such file or folder"),
        (tmp_path / "model.onnx", "it is an ONNX file"),
        (tmp_path / "run", "it is the folder of a run"),
        (stage, "it is a stage of a run"),
        (stage / "program", r"it is a saved Program[^$]*Program.load\(folder\)"),
    ):
        with pytest.raises(ArtifactError, match=told):
            load(place)
    for place, told in ((tmp_path / "model.onnx", "ONNX file"), (stage, "a stage of a run")):
        with pytest.raises(ArtifactError, match=told):
            Program.load(place)


class Cutting(nn.Module):
    """Reads 16 tokens at most."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape[1] > 16:
            input_ids = input_ids[:, :16]
        states: Tensor = self.linear(self.table(input_ids))
        return states


@pytest.mark.parametrize(
    ("dynamic", "length", "told"), [(True, 20, "sequence <= 16"), (False, 9, "sequence == 8")]
)
def test_sizes_that_the_model_does_not_hold_for(
    dynamic: bool, length: int, told: str, tmp_path: Path
) -> None:
    example = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
    program = sparsefx.capture(Cutting().eval(), example, dynamic=dynamic)
    model = load(CpuTarget().compile(program).save(tmp_path / "m"))
    assert model(input_ids=np.zeros((2, 8), np.int64))["output"].shape == (2, 8, 16)
    with pytest.raises(ProgramError, match=f"the model holds for {told} alone"):
        model(input_ids=np.zeros((2, length), np.int64))


class Indexed(nn.Module):
    """Adds a second embedding, whose index follows from the inputs in a way of its own."""

    def __init__(self, index: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.others = nn.Embedding(60, 16), nn.Embedding(60, 16)
        self.linear, self.index = nn.Linear(16, 16), index

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return one row for each token, of shape [batch, sequence, 16]."""
        added = self.others(self.index(input_ids))
        found: Tensor = self.linear(self.words(input_ids) + added)
        return found


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(lambda ids: (ids == 30).long().cumsum(1), id="counts a token"),
        pytest.param(lambda ids: torch.where(ids >= 30, ids - 30, ids), id="lower half"),
        pytest.param(lambda ids: torch.arange(ids.shape[1]).clamp(max=10)[None], id="clamped"),
    ],
)
def test_an_index_that_only_some_inputs_tell_from_a_rule_is_not_saved(
    index: Callable[[Tensor], Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = torch.arange(60).reshape(3, 20)
    program = sparsefx.capture(Indexed(index).eval(), {"input_ids": ids})
    live = CpuTarget().compile(program)
    torch.testing.assert_close(live(input_ids=ids), program(input_ids=ids))
    live.save(tmp_path / "model")
    assert "an index or output is computed in a way of its own" in caplog.text
    with pytest.raises(ArtifactError, match="no plan was saved here"):
        load(tmp_path / "model")


def test_an_index_by_a_rule_is_saved_with_a_fixed_length(tmp_path: Path) -> None:
    ids = torch.arange(60).reshape(3, 20)
    model = Indexed(lambda ids: torch.arange(ids.shape[1])[None]).eval()
    program = sparsefx.capture(model, {"input_ids": ids}, dynamic=False)
    folder = CpuTarget().compile(program).save(tmp_path / "model")
    found = load(folder)(input_ids=ids.numpy())["output"]
    np.testing.assert_allclose(found, program(input_ids=ids)["output"].detach(), atol=1e-5)
