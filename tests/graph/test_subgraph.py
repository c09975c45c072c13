"""The part of a graph that computes some of its values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsefx.graph.subgraph import subgraph
from sparsefx.testing import small_program


class TwoHeads(nn.Module):
    """One head reads ``x`` alone, the other ``labels`` too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(x), "second": self.other(x) * labels}


def test_a_part_reads_its_own_inputs_and_the_tensors_of_the_whole() -> None:
    x, labels = torch.randn(3, 4), torch.randn(3, 4)
    program = small_program(TwoHeads(), x=x, labels=labels)
    run, inputs = subgraph(program.module, {"first": program.outputs()["logits"]})
    assert inputs == ("x",)
    with torch.no_grad():
        program.tensor("linear.bias").add_(1.0)
        program.tensor("other.weight").fill_(torch.nan)
        found = run({"x": x, "labels": labels})
        assert list(found) == ["first"]
        assert torch.equal(found["first"], program(x=x, labels=labels)["logits"])


@pytest.mark.parametrize("training", [True, False])
def test_a_part_is_in_the_mode_of_the_whole(training: bool) -> None:
    program = small_program(nn.Dropout(0.5), input=torch.ones(1, 64))
    run, _ = subgraph(program.module, program.outputs())
    program.train(training)
    assert bool((run({"input": torch.ones(1, 64)})["output"] == 0.0).any()) is training
