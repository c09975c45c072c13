"""Shape inference: what is remembered, and what must not be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import ProgramError
from sparsefx.rewrite import Rewriter
from sparsefx.testing import small_encoder, small_program
from sparsefx.verify import verify


class Reshaping(nn.Module):
    """Two equal linears; the shape of the first result is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        first.unsqueeze_(1)
        return first.sum(1) + second  # type: ignore[no-any-return]  # a tensor


def test_a_value_that_is_changed_in_place_is_no_other_nodes_value(tmp_path: Path) -> None:
    program = sparsefx.capture(Reshaping(), {"x": torch.ones(3, 8)})
    loaded = Program.load(program.save(tmp_path / "saved"))
    for each in (program, loaded):
        each.infer_shapes()
        assert all("val" in n.meta for n in each.graph.nodes if n.op != "output")
        verify(each)
        dims = {n.name: fact.dims for n in each.graph.nodes if (fact := each.shape_of(n))}
        assert dims["linear"] == dims["linear_1"] == ("batch", 8)
        assert dims["unsqueeze_"] == ("batch", 1, 8)


def test_true_one_and_one_point_zero_are_told_apart() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.mul(x, True), torch.mul(x, 1), torch.mul(x, 1.0)

    program = small_program(forward, x=torch.ones(2, dtype=torch.bool))
    loaded = program.copy()
    loaded.invalidate()
    facts = [loaded.shape_of(node) for node in loaded.graph.output_node().all_input_nodes]
    assert [fact.dtype for fact in facts if fact] == [torch.bool, torch.int64, torch.float32]


def test_inference_leaves_the_compilers_of_torch_alone() -> None:
    program = small_program(lambda x: torch.relu(x) + 1, x=torch.ones(2, 3))
    program.invalidate()
    inferred = program.shapes
    # What is overridden has to be there: torch would go on, several times slower, without a word.
    assert callable(ShapeEnv._get_user_frame)
    mode = inferred._mode
    assert isinstance(mode.shape_env, ShapeEnv)
    assert mode.shape_env._get_user_frame() is None
    assert mode.cache_enabled is False


def test_an_operator_that_refuses_its_inputs_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = small_program(lambda x: torch.relu(x), x=torch.ones(2, 3))
    (relu,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    rewriter = Rewriter(program)
    with rewriter.before(relu), pytest.raises(ProgramError, match="refuses its inputs"):
        rewriter.call(torch.ops.aten.bmm.default, *relu.args, *relu.args)
    assert caplog.messages == []
    assert logging.getLogger("torch._subclasses.fake_tensor").filters == []  # others are told


class Attending(nn.Module):
    """An attention whose scores begin with a mask: PyTorch has their shape from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x, key_padding_mask=mask == 0)[0]
        return found


def test_shapes_that_operators_compute_in_python_keep_names_of_sizes(tmp_path: Path) -> None:
    inputs = {"x": torch.ones(2, 5, 8), "mask": torch.ones(2, 5, dtype=torch.long)}
    names = {"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}
    program = sparsefx.capture(Attending().eval(), inputs, dynamic=names)
    loaded = Program.load(program.save(tmp_path / "saved"))
    Pipeline.parse("magnitude-prune{roles=other,sparsity=0.5},fold-masks").run(loaded)
    for each in (program, loaded):
        (scores,) = each.graph.find_nodes(op="call_function", target=torch.ops.aten.baddbmm.default)
        fact = each.shape_of(scores)
        assert fact is not None
        assert fact.dims == ("2*batch", "sequence", "sequence")


@pytest.mark.parametrize("device", ["cpu:0", "meta", "cuda:0"])
def test_shapes_are_the_same_on_every_device(device: str) -> None:
    program = small_encoder()
    expected = [program.shape_of(node) for node in program.graph.nodes]
    with FakeTensorMode(allow_non_fake_inputs=True):  # so that no such device is needed
        program.to(device)
    assert program.device == torch.device(device)
    assert [program.shape_of(node) for node in program.graph.nodes] == expected


def test_a_size_that_follows_from_values_is_told_as_that() -> None:
    program = small_program(lambda x: x[x > 0] * 2, x=torch.ones(4))
    fact = program.graph.output_node().all_input_nodes[0].meta["val"]
    with pytest.raises(ProgramError, match=r"the size u\d+ follows from values") as caught:
        program.shapes.size(fact.shape[0], {"batch": 4})
    assert "known only when it runs" in str(caught.value)
