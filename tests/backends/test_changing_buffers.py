"""Buffers that calls change: the reference follows, targets that keep tensors refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, capture, registry
from sparsefx.errors import TargetError
from sparsefx.graph.effects import changed_state
from sparsefx.program import Program
from sparsefx.testing import small_program

Forward = Callable[["Stateful", Tensor, Tensor], Tensor]
IDS = torch.tensor([[1, 2, 0], [3, 0, 2]])


class Stateful(nn.Module):
    """A table of rows with buffers, which a function of the test reads and writes."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.count: Tensor
        self.cache: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(5, 8))
        self.written = forward

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look rows up and go on with the function."""
        return self.written(self, self.table(input_ids), input_ids)


def captured(forward: Forward) -> Program:
    return capture(Stateful(forward).eval(), {"input_ids": IDS})


def counts(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    self.count += 1
    return rows * self.count


def keeps_rows(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    self.cache[: ids.shape[1]] = rows[0]
    return rows + self.cache.sum(0)


def doubles_view(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    return rows + self.cache.view(-1).to(torch.float32).mul_(2).sum()


def doubles_copy(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    return rows + self.cache.view(-1).to(torch.float64).mul_(2).sum().float()


def only_writes(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    self.count.copy_(rows.sum())
    return rows * 2


def trains_statistics(self: Stateful, rows: Tensor, ids: Tensor) -> Tensor:
    normed: Tensor = self.norm(rows.transpose(1, 2))
    return normed.transpose(1, 2)


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_refused_and_listed_beforehand(target: str) -> None:
    program = captured(counts)
    chosen = registry.parse_target(target)
    (found,) = chosen.unsupported(program)
    assert found.where == "count"
    assert "count (by %add_)" in found.reason
    assert not found.instead
    for lowers in (chosen.compile, chosen.lower):
        with pytest.raises(TargetError, match=r"it would stay as it is now: count \(by %add_\)"):
            lowers(program)


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_observers_are_told_as_such(target: str) -> None:
    program = small_program(nn.Linear(8, 2), input=torch.ones(3, 8))
    prepared = Pipeline.parse("quantize-prepare").run(program)
    with pytest.raises(TargetError, match=r"(?s)observers and fake quanti.*run quantize-convert"):
        registry.parse_target(target).compile(prepared)


def test_reference_follows() -> None:
    reference = registry.parse_target("reference").compile(captured(counts))
    first, second = (reference(input_ids=IDS)["output"] for _ in range(2))
    torch.testing.assert_close(second, first * 2)


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (counts, ["count"]),
        (keeps_rows, ["cache"]),
        (doubles_view, ["cache"]),
        (doubles_copy, []),
        (only_writes, []),
        (trains_statistics, []),
    ],
)
def test_what_counts_as_changed(forward: Forward, names: list[str]) -> None:
    program = captured(forward)
    assert [str(node.target) for node in changed_state(program.graph)] == names
