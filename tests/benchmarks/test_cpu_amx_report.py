"""The check for machines with AMX runs through on the model of the tiles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cpu_amx
from tests.backends.cpu_cases import EMULATED


@pytest.mark.skipif(not EMULATED, reason="this machine has no vpexpandb")
def test_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    arguments = ["--isa", "amx_emulated", "--quick", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["cpu_amx.py", *arguments])
    assert cpu_amx.main() == 0
    shown = capsys.readouterr().out
    assert "self-check: every product exact" in shown
    assert "x the fastest)" in shown
    assert set(json.loads(target.read_text())["linears"][0]["us"]) == set(cpu_amx.FORMATS)
