"""Shared parts of the accelerator's tests: the published numbers, when they lie beside us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """All published numbers, by source."""
    file = GOLDEN / "simulator.json"
    if not file.exists():
        pytest.skip(f"the published numbers are not at {file.name}: they may not be distributed")
    numbers: dict[str, Any] = json.loads(file.read_text())
    return numbers


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The folder with further files of published numbers."""
    if not GOLDEN.exists():
        pytest.skip("the published numbers are not here: they may not be distributed")
    return GOLDEN
