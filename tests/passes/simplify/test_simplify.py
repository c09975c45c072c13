"""simplify: less graph, the same values, in both modes and for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

import sparsefx
from sparsefx import Pipeline, Program, function_pass
from sparsefx.errors import PassError, PipelineError, SpecError
from sparsefx.passbase import PassContext
from sparsefx.passes.simplify.simplify import Simplify
from sparsefx.properties import Property
from sparsefx.testing import assert_equal_outputs, assert_pass, graph_text, small_program
from tests.programs import SPELLINGS, captured
from tests.tiny_models import VOCABULARY, example_batch

X = torch.randn(2, 4)


def simplified(program: Program, **options: bool) -> Program:
    return Pipeline((Simplify(on_no_match="ignore", **options),)).run(program)


NOTHING_DONE: dict[str, Callable[[Tensor], Tensor]] = {
    "mul by 1": lambda x: torch.relu(x * 1),
    "mul by 1.0": lambda x: torch.relu(x * 1.0),
    "add 0": lambda x: torch.relu(x + 0),
    "sub 0": lambda x: torch.relu(x - 0.0),
    "div by 1": lambda x: torch.relu(x / 1.0),
    "power 1": lambda x: torch.relu(x**1.0),
    "whole slice": lambda x: torch.relu(x[0:2, :]),
    "same view": lambda x: torch.relu(x.view(2, 4)),
    "same reshape": lambda x: torch.relu(x.reshape(2, -1)),
    "same expand": lambda x: torch.relu(x.expand(2, 4)),
    "same order": lambda x: torch.relu(x.permute(0, 1)),
    "clone": lambda x: torch.relu(x.clone()),
    "dropout of 0": lambda x: torch.relu(nn.functional.dropout(x, 0.0)),
    "detach without gradient": lambda x: torch.relu(x.detach()),
    "in front and behind": lambda x: torch.relu(x * 1) * 1,
}


@pytest.mark.parametrize("kind", NOTHING_DONE)
def test_no_ops_go(kind: str) -> None:
    program = small_program(NOTHING_DONE[kind], x=X)
    after = "%relu = aten.relu(%x)\nreturn {output: %relu}"
    simple = assert_pass(Simplify(), program, after, skipped=[])
    assert_equal_outputs(program, simple, {"x": X})


SOMETHING_DONE: dict[str, Callable[[Tensor], Tensor]] = {
    "mul by True": lambda x: torch.relu(x > 0) * True,
    "mul by 2": lambda x: x * 2,
    "integers divided": lambda x: x.to(torch.int64) / 1,
    "floor of a division": lambda x: torch.div(x, 1, rounding_mode="floor"),
    "part of a slice": lambda x: x[1:],
    "every second": lambda x: x[:, ::2],
    "another view": lambda x: x.view(4, 2),
    "expand": lambda x: x[None].expand(3, 2, 4),
    "transposed": lambda x: x.permute(1, 0),
    "contiguous for view": lambda x: x.t().contiguous().view(8),
    "a cast that autocast may need": lambda x: torch.relu(x).to(torch.float32),
    "dropout": lambda x: nn.functional.dropout(x, 0.5, training=False),
    "two dropouts": lambda x: (
        nn.functional.dropout(x, 0.5, training=False)
        + nn.functional.dropout(x, 0.5, training=False)
    ),
    "random numbers": lambda x: torch.rand_like(x) - torch.rand_like(x),
}


@pytest.mark.parametrize("kind", SOMETHING_DONE)
def test_what_must_not_match(kind: str) -> None:
    program = small_program(SOMETHING_DONE[kind], x=X)
    assert_pass(Simplify(on_no_match="ignore"), program, graph_text(program), applied=0)


def test_no_match_is_told() -> None:
    with pytest.raises(PassError, match="it applied nowhere"):
        Pipeline((Simplify(on_no_match="error"),)).run(small_program(lambda x: torch.relu(x), x=X))


def test_an_input_that_becomes_the_output() -> None:
    program = small_program(lambda x: x * 1, x=X)
    assert_pass(Simplify(), program, "return {output: %x}", applied=1)


def test_repeated_computations_merge() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.relu(x).exp() + torch.relu(x).exp() * torch.relu(-x)

    after = """
        %relu = aten.relu(%x)
        %exp = aten.exp(%relu)
        %neg = aten.neg(%x)
        %relu_2 = aten.relu(%neg)
        %mul = aten.mul.Tensor(%exp, %relu_2)
        %add = aten.add.Tensor(%exp, %mul)
        return {output: %add}
    """
    program = small_program(model, x=X)
    simple = assert_pass(Simplify(), program, after, applied=2)
    assert simple.history[-1].notes == (
        "common subexpressions: 2 (aten.exp.default 1, aten.relu.default 1)",
    )


def test_numbers_of_different_type_are_different() -> None:
    def model(x: Tensor) -> Tensor:
        y = x.to(torch.int64)
        return (y + 1) * (y + 1.0) * (y + True)

    program = small_program(model, x=X)
    simple = simplified(program)
    assert graph_text(simple).count("aten.add") == 3
    assert_equal_outputs(program, simple, {"x": X})


class Constant(nn.Module):
    """Half of the graph hangs on a buffer alone."""

    table: Tensor

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(float(size)))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = (self.table * 3).sqrt()
        y: Tensor = x + rows[:4] + self.weight * 2
        return y


def test_constants_fold_into_a_buffer() -> None:
    after = """
        %add = aten.add.Tensor(%x, %constants_slice_1)
        %mul_1 = aten.mul.Tensor(%weight, 2)
        %add_1 = aten.add.Tensor(%add, %mul_1)
        return {output: %add_1}
    """
    program = small_program(Constant(8), x=X)
    simple = assert_pass(Simplify(), program, after, skipped=[])
    assert set(simple.named_tensors()) == {"weight", "constants.slice_1"}
    assert_equal_outputs(program, simple, {"x": X})


def test_large_constants_stay() -> None:
    program = small_program(Constant(), x=X)
    item = Simplify(constant_limit=3)
    reason = "%sqrt: its constant value is larger than constant_limit=3"
    simple = Pipeline((item,)).run(program)
    assert [str(skip) for skip in simple.history[-1].skipped] == [reason]


def test_buffers_of_a_training_program_are_no_constants() -> None:
    class Layer(Constant):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(super().forward(x))  # type: ignore[no-any-return]

    masked = Pipeline.parse("magnitude-prune{roles=other,sparsity=0.5}").run(
        small_program(Layer(), x=X)
    )
    assert "dense.weight_mask" in simplified(masked).named_tensors()
    assert "table" in simplified(masked).named_tensors()


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1.0
        y.mul_(2.0)
        view = y.view(8)
        z = y * 1.0
        view.add_(1.0)
        return z + y


def test_writing_in_place_is_respected() -> None:
    program = small_program(InPlace(), x=X)
    simple = simplified(program)
    assert_equal_outputs(program, simple, {"x": X.clone()})


def test_observers_are_kept() -> None:
    prepared = Pipeline.parse("quantize-prepare").run(captured("bert-cls"))
    before = graph_text(prepared).count("sparsefx.observe")
    assert before > 0
    assert graph_text(simplified(prepared)).count("sparsefx.observe") == before


def test_a_dequantized_weight_stays_int8() -> None:
    text = "quantize-prepare,quantize-convert"
    program = captured("bert-cls")
    prepared = Pipeline.parse("quantize-prepare").run(program).train()
    prepared(**example_batch())
    quantized = Pipeline.parse("quantize-convert").run(prepared.eval())
    simple = simplified(quantized, inference=True)
    kinds = {name for name, t in simple.named_tensors().items() if t.dtype == torch.int8}
    assert kinds, text
    assert kinds == {n for n, t in quantized.named_tensors().items() if t.dtype == torch.int8}
    assert_equal_outputs(quantized, simple.eval(), example_batch())


@pytest.mark.parametrize(("name", "attention"), SPELLINGS)
def test_every_architecture_keeps_its_values(name: str, attention: str) -> None:
    program = captured(name, attention)
    simple = simplified(program)
    final = simplified(program, inference=True)
    assert len(final.graph.nodes) < len(simple.graph.nodes) < len(program.graph.nodes)
    for shape in ((1, 1), (2, 12), (3, 40)):
        batch = example_batch(*shape)
        assert_equal_outputs(program, simple, batch)
        assert_equal_outputs(program, final, batch)
    batch = example_batch(2, 12)
    torch.manual_seed(1)
    expected = program.train()(**batch)
    torch.manual_seed(1)
    found = simple.train()(**batch)
    for key, value in expected.items():
        assert torch.equal(found[key], value)


def test_gradients_stay() -> None:
    program = captured("bert-cls")
    simple = simplified(program)
    for one in (program, simple):
        torch.autograd.backward(one(**example_batch())["logits"].square().sum())
    for name, parameter in program.module.named_parameters():
        ours = simple.tensor(name).grad
        assert (ours is None) == (parameter.grad is None)
        if ours is not None and parameter.grad is not None:
            assert torch.equal(ours, parameter.grad), name


def test_inference_takes_dropout_out() -> None:
    final = simplified(captured("bert-cls"), inference=True)
    assert Property.INFERENCE in final.properties
    assert "dropout" not in final.dump()
    assert "mode" not in [node.target for node in final.graph.nodes]
    batch = example_batch()
    first = final.train()(**batch)["logits"]
    assert torch.equal(first, final.eval()(**batch)["logits"])


def test_inference_takes_dropout_out_of_memory_that_is_written_to() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": VOCABULARY,
        "conv_kernel_size": 3,  # what the convolution gives is masked in place, then dropped
    }
    model: Any = DebertaV2Model(DebertaV2Config(**sizes))
    batch = example_batch()
    program = sparsefx.capture(model.eval(), batch)
    final = simplified(program, inference=True)
    text = final.dump()
    assert "masked_fill_" in text
    assert "dropout" not in text
    assert_equal_outputs(program, final, batch)


def test_inference_holds_even_where_nothing_was_left_to_do() -> None:
    program = small_program(lambda x: torch.relu(x), x=X)
    final = simplified(program, inference=True)
    assert final.properties == {Property.INFERENCE}


def test_inference_is_refused_while_masks_are_there() -> None:
    with pytest.raises(PipelineError, match="it cannot run where locked, masked holds"):
        Pipeline.parse("magnitude-prune,pattern-lock,simplify{inference=True}").check()


def test_the_padding_mask_of_a_bert_becomes_plain() -> None:
    text = graph_text(simplified(captured("bert-cls"), inference=True))
    assert "aten.index" not in text
    assert "__and__" not in text
    assert "aten.arange" not in text


def test_a_window_in_the_mask_stays() -> None:
    text = graph_text(simplified(captured("modernbert"), inference=True))
    assert text.count("__and__") == 1
    assert "aten.le.Scalar" in text


NOT_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "an index that starts later": lambda x: x[torch.arange(1, 2)[:, None], torch.arange(4)],
    "an index backwards": lambda x: x[torch.arange(1, -1, -1)[:, None], torch.arange(4)],
    "an index that crosses": lambda x: x[torch.arange(2), torch.arange(4)[:, None]],
    "a condition that fails": lambda x: ((x > 0) & (torch.arange(4) >= 1)) * 1.0,
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_indices_that_are_not_plain(kind: str) -> None:
    program = small_program(NOT_PLAIN[kind], x=X)
    simple = simplified(program)
    assert_equal_outputs(program, simple, {"x": X})


def test_a_dead_tensor_goes_with_its_last_use() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    program = sparsefx.capture(Unused(), {"x": X})
    assert "weight" not in simplified(program).named_tensors()


def test_constants_of_another_run_keep_their_names() -> None:
    """A pass between two runs makes a node of the name that the first one's constant has."""

    @function_pass("scale-once-more")
    def scale(program: Program, ctx: PassContext) -> int:
        output = program.graph.output_node()
        (last,) = output.all_input_nodes
        with ctx.rewriter.before(output):
            three = ctx.rewriter.add_buffer("three", torch.tensor(3.0))
            factor = ctx.rewriter.call(torch.ops.aten.mul.Tensor, three, 3.0)
            new = ctx.rewriter.call(torch.ops.aten.mul.Tensor, last, factor)
        ctx.rewriter.set_output("output", new)
        return 1

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor: Tensor
            self.register_buffer("factor", torch.tensor(5.0))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + self.factor * 2.0

    program = small_program(Scaled(), x=X)
    simple = simplified(Pipeline((scale(),)).run(simplified(program)))
    assert set(simple.named_tensors()) == {"constants.mul", "constants.mul_2"}
    torch.testing.assert_close(simple(x=X)["output"], (torch.relu(X) + 10.0) * 9.0)


def test_options_are_checked() -> None:
    with pytest.raises(SpecError, match="constant_limit=-1: expected at least 0"):
        Pipeline.parse("simplify{constant_limit=-1}")
