"""The check for Arm machines runs through on the model of the dot products."""

from __future__ import annotations

import sys

import pytest

from benchmarks import cpu_arm
from tests.backends.cpu_cases import ARM_MODELS


@pytest.mark.parametrize("name", ARM_MODELS)
def test_it_reports(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu_arm.py", "--isa", name, "--quick"])
    assert cpu_arm.main() == 0
    assert f"{name}: every sum exact" in capsys.readouterr().out


def test_it_says_what_a_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_arm, "obstacle", lambda name: "it lacks neon")
    monkeypatch.setattr(sys, "argv", ["cpu_arm.py"])
    assert cpu_arm.main() == 0
    assert "neon_i8mm: it lacks neon" in capsys.readouterr().out
