"""Tables in a terminal of 80 columns: every name and figure is there, whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparsefx.cli import main
from sparsefx.cli.console import say, show_table, stdout
from sparsefx.registry import names
from sparsefx.report.run import HEAD


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdout, "width", 80)


STAGES = ("fine-tuned-teacher", "sparse-pretraining", "quantization-aware")
ROW = (
    "29.5 (17.1 to 44.8)",
    "+49.5",
    "50.0%",
    "23.4%",
    "70.9",
    "1.3x",
    "2.0x",
    "86.27 (38 to 130)",
)


def test_a_table_that_is_too_wide_is_turned(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(HEAD, [(stage, *ROW) for stage in STAGES])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(f" {name}  ") for line in lines) for name in HEAD)
    assert "…" not in said
    heads = zip(lines[0].split(), lines[1].split()[1:], strict=True)
    assert [begin + end for begin, end in heads] == list(STAGES)
    assert "130)" in lines[-1]


def test_a_table_that_has_room_is_not_turned(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("model", "score"), [("dense", "80.0"), ("sparse", "79.0")])
    assert capsys.readouterr().out.split() == ["model", "score", "dense", "80.0", "sparse", "79.0"]


@pytest.mark.parametrize("terminal", [True, False])
def test_prose_breaks_between_words_of_a_terminal(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "_force_terminal", terminal)
    told = " ".join(["several"] * 30)
    say(told)
    said = capsys.readouterr().out
    assert " ".join(said.split()) == told
    assert said.count("\n") == (3 if terminal else 1)


def test_a_warning_is_one_line_of_a_file() -> None:
    told = "a warning of many words " * 20 + "[that, is, no, markup]"
    script = (
        "import logging; from sparsefx.cli.app import _common; _common(False, False); "
        f"logging.getLogger('sparsefx.any').warning({told!r})"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr == f"WARNING  {told}\n"


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def test_names_of_passes_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    run("passes")
    said = capsys.readouterr().out
    assert "…" not in said
    listed = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert set(names("passes")) <= listed
    assert "requires quant-prepared; establishes quantized; destroys quant-prepared" in " ".join(
        said.split()
    )


def test_options_say_what_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    run("passes", "magnitude-prune")
    said = " ".join(capsys.readouterr().out.split())
    assert "on_no_match 'error', 'warn' or 'ignore' 'warn'" in said
    assert "include a text or a list of texts ()" in said
