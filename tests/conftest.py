"""What all tests share: one torch thread, one seed, no network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

# One order of adding sums up, for the doctests of the package too; and the machine is shared.
torch.set_num_threads(1)
# A slow moment of the machine is no failure of an example.
hypothesis.settings.register_profile("sparsefx", deadline=None)
hypothesis.settings.load_profile("sparsefx")

collect_ignore = ["plugin_fixture"]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sources(checkout: Path) -> dict[str, str]:
    """Text of every module of the package by its path in the tree (links are not followed)."""
    found = {}
    for top in ("sparsefx", "passes", "backends"):
        for path in sorted((checkout / top).rglob("*.py")):
            if path.resolve() == path:
                found[path.relative_to(checkout).as_posix()] = path.read_text(encoding="utf-8")
    return found
