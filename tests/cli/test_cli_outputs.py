"""What is there already is lost only to a user who says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from sparsefx.cli import main
from sparsefx.cli.app import app
from tests.programs import captured

OUTPUTS = {"--out", "--dump-dir", "--html", "--trace", "--csv", "--json"}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def options() -> dict[str, set[str]]:
    """The options of each command."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {
        name: {text for option in command.params for text in option.opts}
        for name, command in group.commands.items()
    }


@pytest.mark.parametrize("name", [*options()])
def test_commands_that_write_files_ask(name: str) -> None:
    """But for a sweep, which goes on with what its folder holds."""
    known = options()[name]
    assert name == "sweep" or not known & OUTPUTS or "--overwrite" in known


@pytest.mark.parametrize(
    "line",
    [
        "augment no-model --data no.csv --out there.jsonl",
        "bench no-model --json there.jsonl",
        "evaluate no-model --data no.csv --json there.jsonl",
        "simulate no-model --csv new.csv --html there.jsonl",
        "simulate no-model --json there.jsonl",
        "simulate no-model --trace there.jsonl",
        "sensitivity no-model --data no.csv --out results",
        "opt no-model -p simplify --dump-dir dumps",
        "capture no-model program",
        "opt no-model -p simplify --out program",
    ],
)
def test_what_is_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.jsonl", "results/int8.json", "dumps/00-input.txt", "program/manifest.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    assert run(*line.split()) == 2
    assert " already\n  hint: choose another " in (said := capsys.readouterr().err)
    assert "or give --overwrite" in said
    assert run(*line.split(), "--overwrite") == 2
    assert " already" not in (said := capsys.readouterr().err)
    assert "no-model" in said or "no.csv" in said


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "no-model", "--json", str(tmp_path), "--overwrite") == 2
    assert "it is a folder\n  hint: choose another --json\n" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["-o ~/new", "--out=~/new", "--out ~/new"])
def test_the_folder_of_the_user_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    captured("bert-cls").save(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("opt", "--program=teacher=~/../p", "p", "-p", "", *line.split()) == 0
    assert (tmp_path / "home" / "new" / "manifest.json").exists()
    assert not (tmp_path / "~").exists()


def test_a_program_is_replaced_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(captured("bert-cls").save(tmp_path / "p"))
    assert run("opt", folder, "-p", "", "-o", folder, "--overwrite") == 0
    assert f"saved over the Program that was in {folder}" in capsys.readouterr().out
