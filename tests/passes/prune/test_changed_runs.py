"""Runs with one weight changed: what lies before it is computed once, and held while it is read."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import sparsefx
from sparsefx.passes.analyses.dataflow import weight_of
from sparsefx.passes.prune.changed_runs import Change, ChangedRuns
from tests.tiny_models import example_batch, tiny

BATCHES = (example_batch(2, 8, 0), example_batch(3, 8, 1))


class Watched(ChangedRuns):
    """Counts the nodes that are computed beside changed ones, and the values that are alive."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.counts: Counter[fx.Node] = Counter()
        self.values: list[weakref.ref[Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor) and n.op == "call_function":
            self.values.append(weakref.ref(found))
        if self._change is None:
            self.counts[n] += 1
        return found

    @property
    def alive(self) -> int:
        return sum(each() is not None for each in self.values)


def runs(architecture: str) -> tuple[Watched, list[str]]:
    program = sparsefx.capture(tiny(architecture), example_batch()).eval()
    linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    places: dict[str, tuple[fx.Node, ...]] = {}
    for node in linears:
        name = weight_of(node) or ""
        places[name] = (*places.get(name, ()), node)
    return Watched(program, BATCHES, places), list(places)


@pytest.mark.parametrize("architecture", ["bert-cls", "modernbert", "albert"])
@torch.no_grad()
def test_what_lies_before_a_weight_is_computed_once(architecture: str) -> None:
    watched, names = runs(architecture)
    same = Change(lambda weight: weight)
    expected = [outputs["logits"] for outputs in watched.untouched()]
    watched.counts.clear()
    for name in names:
        for outputs, logits in zip(watched.changed(name, same), expected, strict=True):
            assert torch.equal(outputs["logits"], logits)
    assert set(watched.counts.values()) == {len(BATCHES)}


@torch.no_grad()
def test_values_that_nothing_reads_any_more_are_not_held() -> None:
    watched, names = runs("bert-cls")
    most = 0
    for outputs in watched.untouched():
        most = max(most, watched.alive)
        del outputs
    for name in names:
        for outputs in watched.changed(name, Change(lambda weight: weight * 0)):
            most = max(most, watched.alive)
            del outputs
    nodes = sum(node.op == "call_function" for node in watched.graph.nodes)
    assert most < nodes / 2  # of two batches
    assert watched.alive <= 2 * len(BATCHES)
