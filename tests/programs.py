"""Captured tiny Programs, each made once in a test session; tests work on copies."""

from __future__ import annotations

from functools import cache

import sparsefx
from sparsefx import Program
from tests.tiny_models import ARCHITECTURES, EAGER_ONLY, example_batch, tiny

SPELLINGS = [
    (name, attention)
    for name in ARCHITECTURES
    for attention in ("sdpa", "eager")
    if not (attention == "sdpa" and name in EAGER_ONLY)
    and not (attention == "eager" and name == "handwritten")
]
"""Every architecture with every spelling of attention that it has."""


@cache
def shared(name: str, attention: str = "sdpa", seed: int = 0) -> Program:
    """Return a tiny model's Program, in eval mode; the same object each time: only to look at."""
    return sparsefx.capture(tiny(name, attention, seed), example_batch())


def captured(name: str, attention: str = "sdpa", seed: int = 0) -> Program:
    """Return a fresh copy of a tiny model's Program, in eval mode."""
    return shared(name, attention, seed).copy()
