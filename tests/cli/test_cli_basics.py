"""The command line: what it prints, and that mistakes end in a message and exit code 2."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsefx
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.cli import main, one_message
from sparsefx.errors import TargetError
from sparsefx.passbase import PassContext, PassReport
from sparsefx.passes.simplify.simplify import Simplify
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.testing import small_program
from tests.tiny_models import tiny


@pytest.fixture
def saved(tmp_path: Path) -> str:
    program = small_program(torch.nn.Linear(4, 2), input=torch.randn(3, 4))
    return str(program.save(tmp_path / "p"))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_passes_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("passes") == 0
    assert "fixpoint" in capsys.readouterr().out
    assert run("passes", "fixpoint") == 0
    assert "max_rounds" in capsys.readouterr().out


def test_the_package_run_as_a_module_is_the_command() -> None:
    command = [sys.executable, "-m", "sparsefx", "passes", "no-such-pass"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "there is no pass 'no-such-pass'" in ran.stderr


def test_simulate_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", "--arch", "list") == 0
    assert "eie-64" in capsys.readouterr().out


def test_targets_lists_all_and_shows_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("targets") == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert run("targets", "cpu") == 0
    assert "threads" in capsys.readouterr().out


def test_recipes_lists_all_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert "sparse-sentence-encoder" in capsys.readouterr().out
    assert run("recipes", "sparsebert") == 0
    assert Recipe.parse(capsys.readouterr().out) == Recipe.shipped("sparsebert")


def test_opt_looks_at_the_place_before_it_runs(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place, expected in (("file", "it is a file"), ("file/deep/er", "file is a file")):
        out = str(tmp_path / place)
        assert run("opt", saved, "--passes", "simplify", "--out", out) == 2
        shown = capsys.readouterr()
        assert expected in "".join(shown.err.split("\n"))
        assert not shown.out


def test_opt_shows_the_difference_and_saves(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("opt", saved, "--passes", "", "--out", str(tmp_path / "q")) == 0
    assert "the graph is the same\ntensors: none changed (of 2)\n" in capsys.readouterr().out
    assert (tmp_path / "q" / "manifest.json").exists()


def test_opt_counts_the_tensors_that_changed_in_the_same_graph(
    saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(self: Simplify, program: Program, ctx: PassContext) -> PassReport:
        ctx.rewriter.set_tensor("weight", program.tensor("weight").detach() * 2)
        return PassReport(1)

    monkeypatch.setattr(Simplify, "run", double)
    assert run("opt", saved, "--passes", "simplify") == 0
    assert "the graph is the same\ntensors: 1 changed (of 2)\n" in capsys.readouterr().out


def test_opt_counts_the_tensors_that_came_and_went(
    saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = "magnitude-prune{sparsity=0.5,roles=other}"
    assert run("opt", saved, "--passes", masked) == 0
    assert "tensors: 1 changed, 1 added (of 2)\n" in capsys.readouterr().out


def test_bench_refuses_unknown_targets_before_it_times(
    saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", saved, "-t", "reference", "-t", "nowhere") == 2
    shown = capsys.readouterr()
    assert "there is no target 'nowhere'" in shown.err
    assert "left out" not in shown.err
    assert not shown.out


def test_bench_writes_its_figures(saved: str, tmp_path: Path) -> None:
    place = tmp_path / "new" / "bench.json"
    sizes = ("--shape", "1x4", "--shape", "2x4")
    assert run("bench", saved, "-t", "reference", *sizes, "--runs", "3", "--json", str(place)) == 0
    found = json.loads(place.read_text(encoding="utf-8"))
    assert found["unit"] == "ms"
    assert "torch" in found["machine"]
    assert [*found["shapes"]] == ["1x4", "2x4"]
    timed = found["shapes"]["2x4"]["reference"]
    assert 0 < timed["low"] <= timed["median"] <= timed["high"]
    assert timed["runs"] == 3


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["bench", "-t", "reference", "--shape", "1x4", "--shape", "2x4"], "alone, not 2 x 4"),
        (["simulate", "--seq", "4", "--batch", "8"], "alone, not 8 x 4"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_refused(
    asked: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = {"input": torch.ones(1, 4, dtype=torch.long)}
    sparsefx.capture(torch.nn.Embedding(10, 8), tokens, dynamic=False).save(tmp_path / "fixed")
    assert run(asked[0], str(tmp_path / "fixed"), *asked[1:]) == 2
    shown = capsys.readouterr()
    assert f"it takes 1 x 4 tokens {expected}" in shown.err
    assert not shown.out


def test_bench_leaves_out_targets_that_cannot_take_the_model(
    saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TargetError("cannot take it", who="cpu")

    monkeypatch.setattr(CpuTarget, "compile", refuse)
    assert run("bench", saved, "-t", "reference", "-t", "cpu", "--runs", "3") == 0
    shown = capsys.readouterr()
    assert "left out cpu: cpu: cannot take it" in shown.err
    assert "reference" in shown.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["opt", "nowhere", "--passes", "simplify"], "there is no such file or folder"),
        (["opt", "SAVED", "--passes", "fixpont"], "did you mean 'fixpoint'?"),
        (["opt", "SAVED", "--passes", "", "--program", "x"], "expected NAME=FOLDER"),
        (["passes", "nothing"], "there is no pass 'nothing'"),
        (["targets", "cpux"], "did you mean 'cpu'?"),
        (["recipes", "sparsbert"], "did you mean 'sparsebert'?"),
        (["opt", "SAVED"], "Missing option"),
        (["nonsense"], "No such command"),
    ],
)
def test_mistakes_end_in_one_message(
    saved: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(*[saved if text == "SAVED" else text for text in arguments]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert "Traceback" not in shown


def test_inspect_of_what_is_no_encoder_compares_nothing_with_nothing(
    saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", saved) == 0
    shown = capsys.readouterr().out
    assert "no encoder layers" in shown
    assert "10 values; zeros: 0.0% of the model\n" in shown
    assert "(1.0x smaller than dense fp32)\n" in shown
    assert "inf" not in shown


def test_inspect_shows_layers_zeros_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("bert-cls").save_pretrained(tmp_path / "model")  # type: ignore[operator]  # Hugging Face
    assert run("capture", str(tmp_path / "model"), str(tmp_path / "program")) == 0
    text = "magnitude-prune{sparsity=0.9}"
    pruned = str(tmp_path / "pruned")
    assert run("opt", str(tmp_path / "program"), "-p", text, "-o", pruned) == 0
    capsys.readouterr()
    assert run("inspect", pruned, "--graph") == 0
    shown = capsys.readouterr().out
    assert "2 layers, 4 heads" in shown
    assert "properties masked" in shown
    assert "90." in shown


def test_weights_that_are_no_numbers_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[1, 2] = torch.nan
    place = small_program(layer, input=torch.randn(3, 4)).save(tmp_path / "p")
    assert run("inspect", str(place)) == 0
    assert "weights that are NaN or infinite: weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file cannot be written: No space"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x cannot be written: No space"),
        (Exception("No space left on device (os error 28)"), "free some space, then run the same"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "file at /x: Permission denied"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_one_message(
    error: Exception,
    expected: str,
    saved: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: Path) -> None:
        raise error

    monkeypatch.setattr(Program, "load", refuse)
    assert run("inspect", saved) == 2
    assert expected in capsys.readouterr().err


def test_an_interrupt_is_told(
    saved: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Program, "load", interrupt)
    assert run("inspect", saved) == 130
    assert (
        "interrupted; no file is cut, and the same command begins anew" in capsys.readouterr().err
    )


@pytest.mark.parametrize("module", ["rich.console", "sparsefx.cli.app", "torch"])
def test_an_interrupt_of_an_import_is_told(module: str) -> None:
    """Also where what is imported forgets it, as some modules of PyTorch do."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        try:\n"
        f"            if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt: pass\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from sparsefx.cli import main\n"
        "main(['bench', 'nowhere'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr == "interrupted; no file is cut, and the same command begins anew\n"
    assert ended.returncode == 130


def test_an_interrupt_of_what_goes_on_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_message():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "run the same command again: what is finished is kept" in capsys.readouterr().err


def test_errors_of_the_program_itself_are_not_hidden(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("a mistake in sparsefx")

    monkeypatch.setattr(Program, "load", fail)
    with pytest.raises(RuntimeError, match="a mistake in sparsefx"):
        main(["inspect", saved])
