"""Names in an ONNX file: of inputs that are returned, and of what loops and branches read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sparsefx import capture
from sparsefx.backends.onnxruntime.target import OnnxRuntime, OnnxRuntimeCompiled
from sparsefx.errors import TargetError
from sparsefx.program import Program

IDS = torch.tensor([[1, 2, 0, 3], [3, 0, 0, 2], [2, 2, 1, 1]])


class Embedder(nn.Module):
    """A table of six rows, and a parameter that is called like an output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.scale = nn.Parameter(torch.ones(4) / 3)


class ReturnsInputs(Embedder):
    """Returns an input under its own name and two others, and a parameter's double."""

    def forward(self, input_ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Return what it was given, and more."""
        hidden = self.table(input_ids) * self.scale
        same = {"ids": input_ids, "input_ids": input_ids, "again": input_ids}
        return {"hidden": hidden, **same, "scale": self.scale * 2, "weights": weights}


class TakesName(Embedder):
    """Returns another value under the name of an input."""

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the ids of the next rows."""
        return {"hidden": self.table(input_ids), "input_ids": input_ids + 1}


class Bag(nn.Module):
    """Looks bags of rows up; torch.onnx makes a loop of it."""

    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(6, 4, mode=mode, padding_idx=padding)

    def forward(self, input_ids: Tensor, offsets: Tensor | None = None) -> dict[str, Tensor]:
        """Return a row for each bag."""
        return {"row_result": self.bag(input_ids, offsets)}


def checked(program: Program, batch: Mapping[str, Tensor]) -> OnnxRuntimeCompiled:
    """Lower a Program; its outputs are those of the Program for a batch."""
    compiled = OnnxRuntime(threads=1).compile(program)
    assert isinstance(compiled, OnnxRuntimeCompiled)
    with torch.no_grad():
        expected = program(**batch)
    found = compiled(**batch)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    return compiled


def test_inputs_that_are_returned(tmp_path: Path) -> None:
    batch = {"input_ids": IDS, "weights": torch.rand(3, 2)}
    program = capture(ReturnsInputs().eval(), {n: t[:2] for n, t in batch.items()})
    compiled = checked(program, batch)
    session = onnxruntime.InferenceSession(str(compiled.save(tmp_path)))
    assert [value.name for value in session.get_inputs()] == ["input_ids", "weights"]
    shapes = {value.name: value.shape for value in session.get_outputs()}
    assert shapes["ids"] == shapes["input_ids"] == ["batch", "sequence"]
    held = {tensor.name for tensor in compiled.model.graph.initializer}
    assert "table.weight" in held


def test_another_value_under_the_name_of_an_input() -> None:
    program = capture(TakesName().eval(), {"input_ids": IDS})
    (found,) = OnnxRuntime().unsupported(program)
    assert found.where == "input_ids"
    assert "rename one of them" in found.reason
    with pytest.raises(TargetError, match="an input has the name of this output"):
        OnnxRuntime().compile(program)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_keep_what_their_loop_reads(mode: str, padding: int | None) -> None:
    program = capture(Bag(mode, padding).eval(), {"input_ids": IDS[:2]})
    checked(program, {"input_ids": IDS[:, :3]})


def test_bags_of_different_sizes() -> None:
    batch = {"input_ids": IDS.flatten(), "offsets": torch.tensor([0, 2, 2, 7])}
    program = capture(Bag("mean", None).eval(), batch, dynamic=False)
    checked(program, batch)
