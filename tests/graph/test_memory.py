"""When tensors are freed: those of a Program with its last use, without the collector of cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsefx
from sparsefx.graph.subgraph import subgraph
from sparsefx.passes.structure.decompose_attention import DecomposeAttention
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.train.step.counts import Counts
from sparsefx.verify import lint
from tests.train import tiny_run


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def captured() -> Program:
    return tiny_run.program().copy()


def piped() -> Program:
    passes = "magnitude-prune{sparsity=0.5},distill{logits=1,hidden=1}"
    return Pipeline.parse(passes).run(captured(), programs={"teacher": captured()})


def computed() -> Program:
    """A Program of which a part has run."""
    program = captured()
    run, inputs = subgraph(program.module, {"logits": program.outputs()["logits"]})
    batch = tiny_run.example_inputs(tiny_run.data())
    run({name: batch[name] for name in inputs})
    return program


def counted() -> Program:
    """A Program that is computed in parts."""
    program = piped()
    Counts(program)
    return program


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("make", [captured, piped, computed, counted])
def test_tensors_go_with_the_last_use_of_a_program(make: Callable[[], Program]) -> None:
    program = make()
    tensors = [weakref.ref(tensor) for tensor in program.named_tensors().values()]
    assert all(ref() is not None for ref in tensors)
    del program
    assert [ref() for ref in tensors if ref() is not None] == []


@pytest.mark.usefixtures("_no_collector")
def test_tensors_of_a_loaded_program_go_too(tmp_path: Path) -> None:
    program = Program.load(tiny_run.program().save(tmp_path / "saved"))
    tensors = [weakref.ref(tensor) for tensor in program.named_tensors().values()]
    del program
    assert [ref() for ref in tensors if ref() is not None] == []


def test_a_graph_knows_its_module_nevertheless() -> None:
    program = captured()
    assert list(lint(program)) == []
    delattr(program.module.get_submodule("classifier"), "bias")
    assert "classifier.bias" in next(iter(lint(program)))


def test_a_copy_may_hold_the_same_tensors() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.project(x)
            found: Tensor = torch.nn.functional.scaled_dot_product_attention(y, y, y)
            return found

    program = sparsefx.capture(Attention(), {"x": torch.randn(2, 3, 4)})
    before = program.dump()
    for shared in (False, True):
        twin = program.copy(share_tensors=shared)
        for name, tensor in program.named_tensors().items():
            assert (twin.tensor(name) is tensor) == shared, name
        Pipeline((DecomposeAttention(),)).run(twin, in_place=True)
        assert "softmax" in twin.dump()
        assert program.dump() == before


@pytest.mark.usefixtures("_no_collector")
def test_a_graph_that_outlives_its_program_is_of_no_module() -> None:
    graph = captured().graph
    assert graph.owning_module is None
    graph.lint()
