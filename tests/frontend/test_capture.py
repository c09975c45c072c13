"""capture: every architecture, both modes, several shapes, equal to eager."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMultipleChoice

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import CaptureError, PipelineError, ProgramError
from tests.programs import SPELLINGS, captured, shared
from tests.tiny_models import HandwrittenEncoder, example_batch, tiny

SHAPES = [(1, 1), (1, 7), (3, 16), (2, 40)]


@pytest.fixture(scope="module", params=SPELLINGS, ids=lambda p: f"{p[0]}-{p[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Program]:
    name, attention = request.param
    return tiny(name, attention), shared(name, attention)


def outputs_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    found = model(**batch)
    return {"output": found} if isinstance(found, Tensor) else dict(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluated_outputs_equal_eager(
    pair: tuple[nn.Module, Program], shape: tuple[int, int]
) -> None:
    model, program = pair
    batch = example_batch(*shape)
    with torch.no_grad():
        expected, found = outputs_of(model, batch), program(**batch)
    assert tuple(found) == program.signature.outputs
    for name, value in found.items():
        assert (value - expected[name]).abs().max() < 1e-6


def test_gradients_equal_eager_without_dropout(pair: tuple[nn.Module, Program]) -> None:
    model, program = copy.deepcopy(pair[0]), pair[1].copy()
    batch = example_batch(2, 12)
    both = (outputs_of(model, batch), program(**batch))
    for outputs in both:
        total = torch.stack([value.square().sum() for value in outputs.values()]).sum()
        torch.autograd.backward(total)
    expected = {name: p.grad for name, p in model.named_parameters()}
    found = {name: p.grad for name, p in program.module.named_parameters()}
    assert any(grad is not None for grad in found.values())
    for name, grad in expected.items():
        if grad is None:
            continue
        ours = found[program.canonical(name)]
        assert ours is not None, name
        assert (ours - grad).abs().max() / grad.abs().max().clamp(min=1.0) < 1e-5, name


def test_autocast_to_bf16_computes_what_it_does_for_the_model(
    pair: tuple[nn.Module, Program],
) -> None:
    model, program = pair
    batch = example_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = outputs_of(model, batch), program.eval()(**batch)
    for name, value in found.items():
        torch.testing.assert_close(value.float(), expected[name].float(), rtol=0.05, atol=0.05)


def test_train_and_eval_switch_every_dropout(pair: tuple[nn.Module, Program]) -> None:
    program = pair[1].copy()
    batch = example_batch(2, 12)
    with torch.no_grad():
        program.train()
        first, second = program(**batch), program(**batch)
        program.eval()
        third, fourth = program(**batch), program(**batch)
    name = program.signature.outputs[0]
    assert not torch.equal(first[name], second[name])
    assert torch.equal(third[name], fourth[name])


def test_training_mode_draws_what_eager_draws() -> None:
    model = tiny("bert-cls").train()
    program = sparsefx.capture(model, example_batch())
    assert program.training
    torch.manual_seed(3)
    expected = model(**example_batch()).logits
    torch.manual_seed(3)
    assert torch.equal(program(**example_batch())["logits"], expected)


def test_sdpa_keeps_its_dropout_rate() -> None:
    program = captured("bert-cls")
    assert "sparsefx.dropout_rate(0.1, %mode)" in program.dump()
    assert "dropout(" in program.dump()
    assert ", True)" not in program.dump()


def test_the_model_is_left_alone() -> None:
    model = tiny("bert-cls")
    model.get_submodule("bert.encoder.layer.0").train()
    modes = {name: module.training for name, module in model.named_modules()}
    program = sparsefx.capture(model, example_batch())
    assert {name: module.training for name, module in model.named_modules()} == modes
    with torch.no_grad():
        program.tensor("classifier.weight").zero_()
    assert model.get_parameter("classifier.weight").abs().sum() > 0


def test_tied_parameters_are_one_tensor() -> None:
    program = sparsefx.capture(tiny("bert-mlm"), example_batch())
    word, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert (word, decoder) in program.ties
    assert program.tensor(word) is program.tensor(decoder)
    assert sum(p.numel() for p in program.parameters()) == sum(
        p.numel() for p in tiny("bert-mlm").parameters()
    )


def test_exported_program_and_graph_module() -> None:
    model = tiny("bert-cls")
    batch = example_batch()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        model, (), batch, dynamic_shapes={name: {0: auto, 1: auto} for name in batch}, strict=False
    )
    again = example_batch(3, 11)
    with torch.no_grad():
        expected = model(**again).logits
        program = sparsefx.capture(exported)
        assert torch.equal(program(**again)["logits"], expected)
        twice = sparsefx.capture(program.module, batch)
        assert torch.equal(twice(**again)["logits"], expected)


def test_positional_inputs_take_the_names_of_forward() -> None:
    batch = example_batch()
    program = sparsefx.capture(HandwrittenEncoder(), (batch["input_ids"], batch["attention_mask"]))
    assert program.signature.input_names == ("input_ids", "attention_mask")
    assert program.signature.inputs[0].dims == ("batch", "sequence")


def test_batch_of_one_as_example_stays_dynamic() -> None:
    program = sparsefx.capture(tiny("bert-cls"), example_batch(1, 8))
    assert program(**example_batch(5, 9))["logits"].shape == (5, 2)


def test_a_mask_of_floats_is_as_long_as_the_tokens() -> None:
    model, batch = tiny("bert-cls"), example_batch(2, 8)
    mask = batch["attention_mask"].float()
    program = sparsefx.capture(model, {**batch, "attention_mask": mask})
    assert {spec.dims for spec in program.signature.inputs} == {("batch", "sequence")}
    longer = example_batch(3, 9)
    longer["attention_mask"] = longer["attention_mask"].float()
    torch.testing.assert_close(program(**longer)["logits"], model(**longer).logits)


@pytest.mark.parametrize("mask", [torch.int64, torch.float32])
def test_multiple_choice_has_any_number_of_choices_and_tokens(mask: torch.dtype) -> None:
    def batch(*sizes: int) -> dict[str, Tensor]:
        kept = torch.ones(sizes, dtype=mask)
        return {"input_ids": torch.randint(100, sizes), "attention_mask": kept}

    config: Any = tiny("bert-cls").config
    model: Any = BertForMultipleChoice(config)
    model.eval()
    program = sparsefx.capture(model, batch(2, 2, 8))
    names = ("batch", "choices", "sequence")
    assert [spec.dims for spec in program.signature.inputs] == [names, names]
    for other in (batch(3, 4, 9), batch(1, 1, 5)):
        torch.testing.assert_close(program(**other)["logits"], model(**other).logits)
    shown = program.signature.example(program.signature.sizes(3, 7))["input_ids"]
    assert shown.shape == (3, 1, 7)


def test_features_stay_as_many_as_they_are() -> None:
    class Both(nn.Module):
        def forward(self, ids: Tensor, features: Tensor) -> Tensor:
            return ids.float().sum(1) + features.view(-1, 8).sum(1)

    ids, features = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8)
    program = sparsefx.capture(Both(), {"ids": ids, "features": features})
    assert program.signature.inputs[1].dims == ("batch", 8)


def test_to_moves_the_constants_of_the_graph() -> None:
    program = captured("bert-cls").to("meta")
    batch = {name: value.to("meta") for name, value in example_batch().items()}
    assert program(**batch)["logits"].device.type == "meta"
    assert "cpu" not in program.dump()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (torch.bfloat16, r"model\.to\(torch\.bfloat16\), and capture it"),
        ("gpu", "give a device such as 'cpu' or 'cuda:0'"),
        (None, "give a device"),
    ],
)
def test_to_takes_devices_alone(given: Any, hint: str) -> None:
    with pytest.raises(ProgramError, match=rf"is no device\n  hint: .*{hint}"):
        captured("bert-cls").to(given)


class Off(nn.Module):
    """Drops out where it trains, and norms and drops out where it says that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.norm(x), 0.5, self.training)
        x = nn.functional.dropout(x * 2, 0.5, training=False, inplace=True)
        return nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var)


@pytest.mark.parametrize("exported", [True, False])
def test_what_a_model_switches_off_stays_off_in_training(exported: bool) -> None:
    model, x = Off().train(), torch.randn(4, 8)
    given = torch.export.export(model, (x,)) if exported else model
    program = sparsefx.capture(given, {"x": x}).train()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(program(x=x)["output"], expected)
    assert torch.equal(program.eval()(x=x)["output"], model.eval()(x))


def test_dropout_alone_that_is_off_is_nothing() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=False) * 2

    program = sparsefx.capture(Nothing().train(), {"x": torch.ones(2, 8)})
    assert torch.equal(program(x=torch.ones(3, 8))["output"], torch.full((3, 8), 2.0))
    assert "dropout" not in program.dump()


class FixedLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def test_a_size_that_the_model_forces_is_fixed(caplog: pytest.LogCaptureFixture) -> None:
    inputs = {"x": torch.ones(2, 8, dtype=torch.long)}
    program = sparsefx.capture(FixedLength(), inputs)
    assert program.signature.inputs[0].dims == ("batch", 8)
    assert "sequence of input 'x' is fixed at 8" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (None, "example_inputs are needed"),
        ({"inputs_id": torch.ones(2, 3)}, "did you mean 'input_ids'?"),
        ({"input_ids": [1, 2]}, "expected a tensor, got list"),
        ({"input_ids": torch.ones(0, 3, dtype=torch.long)}, "dimension 0 of the example is empty"),
    ],
)
def test_wrong_example_inputs(inputs: dict[str, Tensor] | None, expected: str) -> None:
    with pytest.raises(CaptureError, match=r".*") as caught:
        sparsefx.capture(HandwrittenEncoder(), inputs)
    assert expected in str(caught.value)


class Passing(nn.Module):
    def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
        return x + rest.get("y", 0)


def test_inputs_that_forward_does_not_name_are_refused() -> None:
    with pytest.raises(CaptureError, match="forward of Passing names no input 'y'"):
        sparsefx.capture(Passing(), {"x": torch.ones(2), "y": torch.ones(2)})


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ({"input": {2: "batch"}}, "dynamic names dimension 2 of 'input', which has 2 dimensions"),
        ({"input": {-1: "batch"}}, "hint: dimensions are counted from 0 to 1"),
        ({"input": {0: 3}}, "the name of dimension 0 of 'input' is 3, not a text"),
    ],
)
def test_dynamic_dimensions_that_are_not_there(dynamic: Any, expected: str) -> None:
    with pytest.raises(CaptureError, match="capture at input") as caught:
        sparsefx.capture(nn.Softmax(-1), {"input": torch.ones(1, 3)}, dynamic=dynamic)
    assert expected in str(caught.value)


class Siamese(nn.Module):
    """Two texts with lengths of their own, and an offset for the ids of all first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, a: Tensor, b: Tensor, offset: Tensor) -> Tensor:
        first, second = self.table(a + offset).mean(1), self.table(b).mean(1)
        return (first * second).sum(-1)  # type: ignore[no-any-return]  # a tensor


def test_sizes_that_differ_in_the_examples_are_several_dimensions() -> None:
    def inputs(batch: int, first: int, second: int) -> dict[str, Tensor]:
        shapes = {"a": (batch, first), "b": (batch, second), "offset": (1, first)}
        return {name: torch.ones(shape, dtype=torch.long) for name, shape in shapes.items()}

    model = Siamese().eval()
    program = sparsefx.capture(model, inputs(2, 8, 10))
    assert [spec.dims for spec in program.signature.inputs] == [
        ("batch", "sequence"),
        ("batch", "sequence_2"),
        (1, "sequence"),
    ]
    for sizes in ((2, 8, 10), (1, 12, 5), (3, 7, 7)):
        batch = inputs(*sizes)
        torch.testing.assert_close(program(**batch)["output"], model(**batch))
    alone = sparsefx.capture(model, inputs(1, 8, 8)).signature.inputs
    assert {spec.dims for spec in alone} == {("batch", "sequence")}


def test_one_name_for_two_sizes_is_refused() -> None:
    names = {"a": {0: "n"}, "b": {0: "n"}}
    with pytest.raises(CaptureError, match="'n', of which the example has 3, and 2 in a") as caught:
        sparsefx.capture(Crossed(), {"a": torch.ones(2, 3), "b": torch.ones(3, 2)}, dynamic=names)
    assert "different names" in str(caught.value)


class Crossed(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum of [sequence, batch] turned and [batch, sequence]."""
        return a.t() + b


def test_dimensions_of_an_exported_program_keep_their_names() -> None:
    sequence, batch = torch.export.Dim("sequence", min=2, max=64), torch.export.Dim("rows")
    dims = {"a": {0: sequence, 1: batch}, "b": {0: batch, 1: sequence}}
    inputs = (torch.randn(3, 5), torch.randn(5, 3))
    exported = torch.export.export(Crossed(), inputs, dynamic_shapes=dims)
    a, b = sparsefx.capture(exported).signature.inputs
    assert (a.dims, b.dims) == (("sequence", "rows"), ("rows", "sequence"))


def test_nameless_dimensions_of_an_exported_program_are_told_apart() -> None:
    auto = torch.export.Dim.AUTO
    inputs = (torch.randn(3, 5), torch.randn(5, 3))
    dims = {"a": {0: auto, 1: auto}, "b": {0: auto, 1: auto}}
    exported = torch.export.export(Crossed(), inputs, dynamic_shapes=dims)
    program = sparsefx.capture(exported)
    a, b = program.signature.inputs
    assert (a.dims, b.dims) == (("batch", "sequence"), ("sequence", "batch"))
    assert program(a=torch.ones(2, 7), b=torch.ones(7, 2))["output"].shape == (7, 2)
    with pytest.raises(ProgramError, match="batch is 2 in a"):
        program(a=torch.ones(2, 7), b=torch.ones(7, 3))


@pytest.mark.parametrize("given", ["bert", Path("bert"), 3, nn.Linear])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(CaptureError, match=r"expected an nn.Module or an ExportedProgram, got"):
        sparsefx.capture(given, {"x": torch.ones(2)})


def test_pipelines_take_programs_and_passes_alone() -> None:
    model: Any = HandwrittenEncoder()
    with pytest.raises(PipelineError, match="expected a Program, got HandwrittenEncoder"):
        Pipeline(()).run(model)
    with pytest.raises(PipelineError, match=r"hint: sparsefx.capture\(model, example_inputs\)"):
        Pipeline(()).run(captured("handwritten"), programs={"teacher": model})
    with pytest.raises(PipelineError, match="expected passes, got 'simplify'"):
        Pipeline(("simplify",))  # type: ignore[arg-type]


def test_one_tensor_under_two_names_stays_two_inputs() -> None:
    same = torch.randn(2, 3)
    program = sparsefx.capture(nn.Bilinear(3, 3, 1), {"input1": same, "input2": same})
    other = torch.randn(2, 3)
    swapped = program(input1=other, input2=same)["output"]
    assert not torch.equal(swapped, program(input1=same, input2=same)["output"])
    assert not torch.equal(swapped, program(input1=same, input2=other)["output"])
