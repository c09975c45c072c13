"""What the end of a run holds in memory while it times the stages."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import fx

from sparsefx import registry
from sparsefx.cli.runs import _export
from sparsefx.instruments import timing
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from tests.train import tiny_run

MASKED = """
name: masked
data: {max_length: 16, batch_size: 8}
stages:
- {name: dense, training: {steps: 1, precision: fp32}}
- {name: sparse, pipeline: 'magnitude-prune{sparsity=0.5}', training: {steps: 1, precision: fp32}}
"""


@pytest.mark.parametrize(("target", "programs"), [("reference", 2), ("onnxruntime", 0)])
def test_only_what_is_timed_is_in_memory(
    target: str, programs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tiny_run.run(Recipe.parse(MASKED), tmp_path / "run")
    modules: weakref.WeakSet[fx.GraphModule] = weakref.WeakSet()
    make = Program.__init__
    counted = []

    def made(self: Program, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        modules.add(self._module)

    def timed(functions: Mapping[str, Any], batch: Any, **options: Any) -> dict[str, Any]:
        counted.append((list(functions), len(modules)))
        return {}

    monkeypatch.setattr(Program, "__init__", made)
    monkeypatch.setattr(timing, "time_in_turns", timed)
    gc.collect()
    gc.disable()
    try:
        _export(result, tmp_path, registry.parse_target(target), "all", 8)
    finally:
        gc.enable()
    assert counted == [(["dense", "sparse"], programs)]
