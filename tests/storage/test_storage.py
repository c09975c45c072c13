"""Saved Programs: exact round trips, damaged files, interrupted saves, and that no code is run."""

from __future__ import annotations

import copy
import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import SafetensorError

from sparsefx import Pass, PassReport, Pipeline, Program, errors
from sparsefx.passbase import PassContext
from sparsefx.storage.files import read_json, take_blocks, whole_file, write_json, write_text
from sparsefx.storage.places import told_place
from sparsefx.testing import assert_equal_outputs, small_program


def relu_program() -> Program:
    return small_program(lambda x: torch.relu(x * 1.0) + 1, x=torch.randn(2, 3))


def test_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: (os error 28)")

    monkeypatch.setattr("sparsefx.storage.programs.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        relu_program().save(tmp_path / "program")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_save_and_load_round_trip_exactly(tmp_path: Path) -> None:
    program = Pipeline.parse("simplify").run(relu_program())
    program.save(tmp_path / "p")
    again = Program.load(tmp_path / "p")
    assert again.fingerprint() == program.fingerprint()
    assert again.dump(facts=True) == program.dump(facts=True)
    assert again.history == program.history
    assert_equal_outputs(program, again, {"x": torch.randn(2, 3)})


def test_loaded_tensors_lie_where_fresh_ones_do(tmp_path: Path) -> None:
    # Matrix products round otherwise where a tensor does not begin at a cache line, and a run that
    # went on from a saved Program ended with other weights.
    program = Pipeline.parse("quantize-prepare").run(small_program(Tower(), x=torch.randn(2, 8)))
    program.save(tmp_path / "p")
    again = Program.load(tmp_path / "p")
    assert {tensor.data_ptr() % 64 for tensor in again.named_tensors().values()} == {0}


class Tower(torch.nn.Module):
    """Layers that are as large as each other, and whose names are of several depths."""

    def __init__(self) -> None:
        super().__init__()
        made = [torch.nn.Linear(8, 8, bias=False) for _ in range(3)]
        self.encoder = torch.nn.ModuleDict({"b": made[0], "a": made[1]})
        self.head = made[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.encoder["a"](self.encoder["b"](x).relu()).relu())
        return found


def test_an_optimizer_goes_on_with_a_loaded_program(tmp_path: Path) -> None:
    """Its state is kept by the places of the parameters, so these have to stay."""
    first = small_program(Tower(), x=torch.randn(4, 8)).train()

    def train(program: Program, optimizer: torch.optim.Optimizer) -> None:
        torch.manual_seed(1)
        for _ in range(3):
            torch.autograd.backward(program(x=torch.randn(4, 8))["output"].square().mean())
            optimizer.step()
            program.step()
            optimizer.zero_grad()

    optimizers = [torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)]
    train(first, optimizers[0])
    again = Program.load(first.save(tmp_path / "p"))
    names = [name for name, _ in first.module.named_parameters()]
    assert [name for name, _ in again.module.named_parameters()] == names
    optimizers.append(torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for program, optimizer in zip((first, again), optimizers, strict=True):
        train(program, optimizer)
    assert again.fingerprint() == first.fingerprint()


def test_others_may_read_what_was_saved(tmp_path: Path) -> None:
    folder = relu_program().save(tmp_path / "p")
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {plain.stat().st_mode}
    (tmp_path / "folder").mkdir()
    assert folder.stat().st_mode == (tmp_path / "folder").stat().st_mode


@pytest.mark.parametrize("name", ["graph.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    small_program(torch.nn.Linear(3, 2), input=torch.randn(1, 3)).save(tmp_path / "p")
    path = tmp_path / "p" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data.replace(b"weight", b"wright"))
    with pytest.raises(errors.ArtifactError, match=r"missing|cut or altered") as caught:
        Program.load(tmp_path / "p")
    assert caught.value.hint == "copy the whole folder again, or save it again"


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"format": 1}', '{"format": 1, "sha256": 3}'])
def test_an_altered_manifest_is_refused(tmp_path: Path, text: str) -> None:
    relu_program().save(tmp_path / "p")
    (tmp_path / "p" / "manifest.json").write_text(text)
    with pytest.raises(errors.ArtifactError) as caught:
        Program.load(tmp_path / "p")
    assert caught.value.hint


def test_a_save_that_fails_at_the_end_keeps_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relu_program().save(tmp_path / "p")
    replace = os.replace

    def refuse(source: Path, place: Path) -> None:
        if source.name.endswith("-new"):
            raise OSError("no space left")
        replace(source, place)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        small_program(torch.nn.Linear(3, 2), input=torch.randn(1, 3)).save(tmp_path / "p")
    assert "relu" in Program.load(tmp_path / "p").dump()
    assert [place.name for place in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_in_place_of_a_program_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(errors.ArtifactError, match="it is a tokenizer") as caught:
        Program.load(tmp_path)
    assert "AutoTokenizer" in caught.value.hint


def test_a_save_that_was_cut_is_no_program(tmp_path: Path) -> None:
    relu_program().save(tmp_path / "p")
    (tmp_path / "p" / "manifest.json").unlink()
    with pytest.raises(errors.ArtifactError, match="save was cut"):
        Program.load(tmp_path / "p")
    with pytest.raises(errors.ArtifactError, match="holds other files"):
        relu_program().save(tmp_path / "p")


def test_a_file_cannot_name_code_to_run(tmp_path: Path) -> None:
    from sparsefx.graph.callables import resolve_callable

    files = ("aten.from_file.default", "aten.from_file.out")
    for name in ("os.system", "operator.attrgetter", "aten.__class__.x", "builtins.eval", *files):
        with pytest.raises(errors.ArtifactError, match="there is no operator"):
            resolve_callable(name)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), whole_file(path) as beside:
        beside.write_text("{" + "}" * (1 // beside.write_text("")))
    assert read_json(path, "") == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "file.json"
    with pytest.raises(FileNotFoundError) as caught, whole_file(path):
        pytest.fail("its folder does not exist")
    assert caught.value.filename == str(path)


WRITER = """
import pathlib, sys
from sparsefx.storage.files import whole_file
with whole_file(pathlib.Path(sys.argv[1])) as beside:
    beside.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_wrote_is_removed_and_what_another_writes_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a[1].jsonl"  # a name with letters of glob patterns
    other = tmp_path / ".a[1].jsonl-7"
    other.write_text("of somebody else")
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        left = tmp_path / f".a[1].jsonl-{process.pid}.part"
        write_text(path, "first")
        assert left.read_text() == "half"
        process.kill()
    assert left.exists()
    write_text(path, "second")
    assert {each.name for each in tmp_path.iterdir()} == {path.name, other.name}
    assert path.read_text() == "second"


def test_a_pipe_is_written_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "told")
    assert os.read(reader, 9) == b"told"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 2])
def test_blocks_are_taken_on_systems_without_a_call_for_it(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "states"
    with path.open("wb") as file:
        take_blocks(file, size)
    assert path.stat().st_size == size
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with path.open("wb") as file:
        take_blocks(file, size)
    assert path.stat().st_size == size
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError, match="No space left"), full.open("wb") as file:
            take_blocks(file, size)


@dataclass(frozen=True)
class Counts(Pass):
    """Counts steps, as a pass of a script does."""

    name: ClassVar[str] = "counts"

    by: int = 1

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        ctx.rewriter.add_buffer("count", torch.zeros(()))
        program.active = (*program.active, self)
        return PassReport(1)

    @torch.no_grad()
    def after_step(self, program: Program, step: int) -> None:
        program.tensor("count").add_(self.by)


def counting() -> Program:
    program = small_program(torch.nn.Linear(2, 2), input=torch.ones(1, 2))
    return Pipeline((Counts(by=3),)).run(program)


def test_a_pass_of_ones_own_is_told_at_save_and_given_at_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, folder = counting(), tmp_path / "saved"
    program.step()
    program.save(folder)
    assert "the active pass 'counts{by=3}' is no installed one: Program.load(" in caplog.text
    assert "passes=[Counts])" in caplog.text
    with pytest.raises(errors.ArtifactError, match=r"'counts\{by=3\}', which was active") as caught:
        Program.load(folder)
    assert caught.value.where == str(folder / "graph.json")
    assert "there is no pass 'counts'" in caught.value.why
    assert "Program.load(folder, passes=[...]) takes the class of 'counts'" in caught.value.hint
    again = Program.load(folder, passes=[Counts])
    assert again.active == (Counts(by=3),)
    again.step()
    assert again.tensor("count").item() == 6
    caplog.clear()
    program.active = ()
    program.save(folder)
    assert not caplog.text
    assert Program.load(folder).tensor("count").item() == 3


def test_another_pass_of_the_same_name_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = counting()
    program.active = (type("Own", (Counts,), {"name": "magnitude-prune"})(),)
    program.save(tmp_path / "saved")
    assert "is no installed one, and another has its name: Program.load(" in caplog.text


@pytest.mark.parametrize("given", [Counts, [Counts()], "counts", None, [int]])
def test_what_is_no_class_of_passes_is_not_taken(given: Any, tmp_path: Path) -> None:
    folder = counting().save(tmp_path / "saved")
    with pytest.raises(errors.ArtifactError, match="load at passes: expected a list of classes"):
        Program.load(folder, passes=given)


def test_a_property_that_is_none_is_not_saved(tmp_path: Path) -> None:
    program = small_program(torch.nn.Linear(2, 2), input=torch.ones(1, 2))
    program.properties |= {"banana"}  # type: ignore[arg-type]  # what this is about
    with pytest.raises(errors.PassError, match=r"save at program\.properties: .* holds 'banana'"):
        program.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_last_stage_of_many_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    for number in range(1, 12):
        (tmp_path / "stages" / f"{number}-it" / "program").mkdir(parents=True)
    what, hint = told_place(tmp_path)
    assert what == "it is the folder of a run"
    assert "11-it" in hint
