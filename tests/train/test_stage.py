"""What a stage leaves to the next one: its folder, and nothing in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import fx

from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train import stage
from sparsefx.train.events import Evaluated, Event, StageStarted
from sparsefx.train.trainer import StageTrainer
from tests.train import tiny_run

THREE = """
name: three
data: {max_length: 16, batch_size: 8}
stages:
- {name: dense, training: {steps: 2, precision: fp32}}
- name: sparse
  teacher: dense
  pipeline: "decompose-attention,magnitude-prune{sparsity=0.5},distill{scores=1}"
  training: {steps: 2, precision: fp32, label_weight: 0, accumulate: 2}
  after: [strip-distillation]
- name: int8
  teacher: dense
  pipeline: [pattern-lock, quantize-prepare, 'distill{hidden=1,cached=True}']
  training: {steps: 2, precision: fp32, label_weight: 0}
  after: [strip-distillation, fold-masks, quantize-convert]
"""
"""Teachers in all ways: joined, with their attention spelled out, and asked beforehand."""


class Alive:
    """A listener that notes what is alive of a run, as training begins and at each score."""

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[fx.GraphModule] = weakref.WeakSet()  # hold the tensors
        self.trainers: list[weakref.ref[Any]] = []
        self.noted: list[tuple[str, int, int]] = []

    def __call__(self, event: Event) -> None:
        """Count Programs, and trainers with their optimizers."""
        if isinstance(event, StageStarted | Evaluated):
            trainers = sum(ref() is not None for ref in self.trainers)
            self.noted.append((type(event).__name__, len(self.modules), trainers))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    """Counts what is made from here on; the collector of cycles is off."""
    found = Alive()
    make = Program.__init__

    def made(self: Program, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        found.modules.add(self._module)

    class Watched(StageTrainer):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            found.trainers += [weakref.ref(self), weakref.ref(self._optimizer)]

    tiny_run.program()  # which the session is given
    monkeypatch.setattr(Program, "__init__", made)
    monkeypatch.setattr(stage, "StageTrainer", Watched)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


def test_a_stage_is_alone_in_memory(alive: Alive, tmp_path: Path) -> None:
    tiny_run.run(Recipe.parse(THREE), tmp_path / "run", listeners=[alive])
    training, score = ("StageStarted", 1, 2), ("Evaluated", 1, 0)
    assert alive.noted == [training, score] * 3
