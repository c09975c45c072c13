"""quantize-prepare: golden text, sites, training, options, bad input."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program, registry
from sparsefx.errors import PassError, PipelineError, SpecError
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.passes.quantize.prepare import STEP, QuantizePrepare
from sparsefx.passes.quantize.sites import find_linears, is_requantized_in_paper
from sparsefx.properties import Property
from sparsefx.testing import assert_pass, small_program
from tests.programs import shared
from tests.tiny_models import example_batch

ops = torch.ops.sparsefx


@functools.cache
def prepared_once(spec: str, model: str) -> Program:
    return Pipeline.parse(spec).run(shared(model))


def prepared(spec: str = "quantize-prepare", model: str = "bert-cls") -> Program:
    return prepared_once(spec, model).copy()


def count(program: Program, target: object) -> int:
    return len(program.graph.find_nodes(op="call_function", target=target))  # type: ignore[arg-type]  # any


class Shared(nn.Module):
    """Two linears on one input, one followed by an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.side = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.up(x)) + self.side(x) + x.sum()
        return result


GOLDEN = """
    %mode = mode()
    %fake_quantize_weight = sparsefx.fake_quantize_weight(%up_weight, %quantization_step, 0, \
-128, 127)
    %observe = sparsefx.observe(%x, %up_input_minimum, %up_input_maximum, %quantization_step, \
0.01, 0, None, %mode)
    %fake_quantize = sparsefx.fake_quantize(%x, %up_input_minimum, %up_input_maximum, \
%quantization_step, 0, 0, 255)
    %linear = aten.linear(%fake_quantize, %fake_quantize_weight, %up_bias)
    %observe_1 = sparsefx.observe(%linear, %up_output_minimum, %up_output_maximum, \
%quantization_step, 0.01, 0, None, %mode)
    %fake_quantize_1 = sparsefx.fake_quantize(%linear, %up_output_minimum, %up_output_maximum, \
%quantization_step, 0, 0, 255)
    %relu = aten.relu(%fake_quantize_1)
    %fake_quantize_weight_1 = sparsefx.fake_quantize_weight(%side_weight, %quantization_step, 0, \
-128, 127)
    %linear_1 = aten.linear(%fake_quantize, %fake_quantize_weight_1)
    %add = aten.add.Tensor(%relu, %linear_1)
    %sum_1 = aten.sum(%x)
    %add_1 = aten.add.Tensor(%add, %sum_1)
    return {output: %add_1}
"""


def test_golden() -> None:
    program = small_program(Shared(), x=torch.randn(2, 4))
    assert_pass(QuantizePrepare(), program, GOLDEN, applied=2, skipped=[])


def test_matches_nothing_without_linears() -> None:
    program = small_program(lambda x: torch.tanh(x), x=torch.randn(2, 4))
    after = "%tanh = aten.tanh(%x)\nreturn {output: %tanh}"
    assert_pass(QuantizePrepare(), program, after, applied=0, skipped=[])


class Joined(nn.Module):
    """A weight under another name than ``weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.in_proj_weight)


@pytest.mark.parametrize(
    ("model", "scale"),
    [(nn.Linear(4, 3), "input_scale"), (Joined(), "in_proj_weight_input_scale")],
)
def test_weights_at_the_root_and_under_other_names(model: nn.Module, scale: str) -> None:
    batch = {"input": torch.randn(2, 4)}
    small = small_program(model, input=batch["input"])
    program = Pipeline.parse("quantize-prepare").run(small)
    calibrate(program, [batch])
    converted = Pipeline.parse("quantize-convert").run(program)
    assert scale in converted.named_tensors()
    reference = registry.parse_target("reference").compile(converted)
    torch.testing.assert_close(
        reference(**batch)["output"], model(batch["input"]), atol=0.05, rtol=0.05
    )


def test_computed_weight_is_skipped_with_a_reason() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, torch.tanh(self.weight))

    program = small_program(Computed(), x=torch.randn(2, 4))
    after = """
        %tanh = aten.tanh(%weight)
        %linear = aten.linear(%x, %tanh)
        return {output: %linear}
    """
    reason = "%linear: its weight is computed by %tanh; only a tensor is quantized"
    assert_pass(QuantizePrepare(), program, after, applied=0, skipped=[reason])


def test_linear_at_an_output_and_after_another() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    program = small_program(model, input=torch.randn(2, 4))
    found = Pipeline((QuantizePrepare(requantize="all"),)).run(program)
    # The output of the first is the input of the second: quantized once.
    assert count(found, ops.fake_quantize.default) == 3
    returned = str(found.graph.output_node().args[0])
    assert returned == "{'output': fake_quantize_2}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_paper_requantizes_query_key_intermediate_and_pooler(attention: str) -> None:
    program = shared("bert-cls", attention)
    sites, _ = find_linears(program)
    chosen = [site.module for site in sites if is_requantized_in_paper(site.node)]
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    parts = ("attention.self.query", "attention.self.key", "intermediate.dense")
    assert chosen == [f"{layer}.{part}" for layer in layers for part in parts] + [
        "bert.pooler.dense"
    ]
    assert len(sites) == 14


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("distilbert", {"q_lin", "k_lin", "lin1", "pre_classifier"}),
        ("roberta", {"query", "key", "dense"}),
        ("electra", {"query", "key", "dense"}),
        ("mpnet", {"q", "k", "dense"}),
        ("deberta", {"query_proj", "key_proj", "pos_query_proj", "pos_key_proj", "dense"}),
        ("handwritten", {"q", "k", "up"}),
    ],
)
def test_same_places_by_structure_in_other_architectures(model: str, names: set[str]) -> None:
    program = shared(model)
    sites, _ = find_linears(program)
    chosen = [site.module for site in sites if is_requantized_in_paper(site.node)]
    assert {name.rpartition(".")[2] for name in chosen} == names
    assert not any(name.endswith(("output.dense", "value")) for name in chosen)


def test_input_of_query_key_value_is_observed_once() -> None:
    program = prepared()
    names = [name for name in program.named_tensors() if name.endswith("input_minimum")]
    layer = [name for name in names if ".layer.0." in name]
    assert [name.split("layer.0.")[1].removesuffix(".input_minimum") for name in layer] == [
        "attention.output.dense",
        "attention.self.query",
        "intermediate.dense",
        "output.dense",
    ]
    assert program.history[-1].notes == ("17 activation and 14 weight quantizers for 14 linears",)


def test_weight_of_a_shared_layer_is_quantized_once() -> None:
    program = prepared(model="albert")
    linears = count(program, torch.ops.aten.linear.default)
    assert count(program, ops.fake_quantize_weight.default) < linears
    assert any(name.endswith("input_2_minimum") for name in program.named_tensors())


def test_tied_decoder_stays_float_with_a_reason() -> None:
    program = prepared(model="bert-mlm")
    (skip,) = program.history[-1].skipped
    assert skip.where.endswith("word_embeddings.weight")
    assert "tied to an embedding" in skip.reason


def test_a_weight_that_a_norm_reads_is_not_called_an_embedding() -> None:
    program = small_program(nn.Linear(4, 3), input=torch.randn(2, 4))
    penalised = Pipeline.parse("reweighted-l1{roles=other},quantize-prepare").run(program)
    (skip,) = penalised.history[-1].skipped
    assert skip.reason == "%abs_1 reads it too, and stays float32"


def test_include_and_exclude() -> None:
    program = prepared("quantize-prepare{include='encoder',exclude='value'}")
    reasons = {skip.reason for skip in program.history[-1].skipped}
    assert reasons == {"no include expression is found in its name", "excluded by 'value'"}
    assert count(program, ops.fake_quantize_weight.default) == 10


def test_an_expression_without_effect_is_told() -> None:
    program = prepared("quantize-prepare{exclude='clasifier'}")
    skips = [str(skip) for skip in program.history[-1].skipped]
    assert skips == ["exclude='clasifier': it is found in no name"]


def test_a_tied_weight_is_chosen_by_any_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = self.down = nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.down(torch.relu(self.up(x))))

    program = small_program(Tied(), x=torch.ones(1, 4))
    (entry,) = Pipeline.parse("quantize-prepare{include='down'}").run(program).history
    assert (entry.applied, entry.skipped) == (2, ())
    (entry,) = (
        Pipeline.parse("quantize-prepare{exclude='down',on_no_match=ignore}").run(program).history
    )
    assert {str(skip) for skip in entry.skipped} == {"up.weight: excluded by 'down'"}


def test_a_prepared_program_is_no_longer_for_inference_alone() -> None:
    text = "simplify{inference=true},quantize-prepare"
    properties = Pipeline.parse(text).run(shared("bert-cls")).properties
    assert properties == {Property.QUANT_PREPARED}


def test_roles_and_the_structure_behind_quantizers() -> None:
    plain, program = shared("bert-cls"), prepared("quantize-prepare{roles=('encoder','head')}")
    (skip,) = program.history[-1].skipped
    assert str(skip).endswith("its role pooler is not among roles=encoder,head")
    assert program.facts(EncoderStructure).roles == plain.facts(EncoderStructure).roles
    assert len(program.facts(EncoderStructure).layers) == 2


def train(program: Program, steps: int, *, autocast: bool = False) -> list[float]:
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-3)
    batch, losses = example_batch(4, 8), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = program(**batch)["logits"]
            loss = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
        program.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("autocast", [False, True])
def test_trains_and_observes(autocast: bool) -> None:
    program = prepared().train()
    losses = train(program, 8, autocast=autocast)
    assert losses[-1] < losses[0]
    assert all(
        torch.isfinite(t) for n, t in program.named_tensors().items() if n.endswith("minimum")
    )
    assert int(program.tensor(STEP)) == 8
    weight = program.tensor("bert.encoder.layer.0.attention.self.query.weight")
    assert weight.grad is not None
    assert torch.count_nonzero(weight.grad) > 0.9 * weight.numel()


def ranges(program: Program) -> dict[str, float]:
    found = program.named_tensors().items()
    return {name: float(t) for name, t in found if name.endswith(("_minimum", "_maximum"))}


def test_evaluation_moves_no_observer() -> None:
    program = prepared().train()
    train(program, 2)
    before = ranges(program)
    program.eval()(**example_batch(5, 11, seed=3))
    assert ranges(program) == before


def test_begin_and_freeze() -> None:
    program = prepared("quantize-prepare{begin=2,freeze=4}").train()
    train(program, 2)
    assert not any(abs(value) < float("inf") for value in ranges(program).values())
    plain = shared("bert-cls")
    copy = prepared("quantize-prepare{begin=2}").eval()
    assert torch.equal(copy(**example_batch())["logits"], plain(**example_batch())["logits"])
    train(program, 2)
    frozen = ranges(program)
    assert all(abs(value) < float("inf") for value in frozen.values())
    train(program, 2)
    assert ranges(program) == frozen


def test_save_and_load_go_on_alike(tmp_path: Path) -> None:
    program = prepared("quantize-prepare{weights='channel'}").train()
    train(program, 2)
    again = Program.load(program.save(tmp_path / "saved"))
    assert again.fingerprint() == program.fingerprint()
    assert [str(item) for item in again.active] == ["quantize-prepare{weights='channel'}"]
    program.eval(), again.eval()
    batch = example_batch(3, 5)
    assert torch.equal(again(**batch)["logits"], program(**batch)["logits"])


def test_runs_where_it_is_moved() -> None:
    program = prepared().to("meta")
    batch = {name: tensor.to("meta") for name, tensor in example_batch().items()}
    assert program.train()(**batch)["logits"].device.type == "meta"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quantize-prepare{weights='row'}", "weights='row': expected 'tensor' or 'channel'"),
        ("quantize-prepare{weight_range='int4'}", "expected 'full', 'narrow' or 'reduced'"),
        ("quantize-prepare{average=1.5}", "average=1.5: expected a number in 0..1"),
        ("quantize-prepare{begin=-1}", "begin=-1: expected 0 or more"),
        ("quantize-prepare{begin=9,freeze=9}", "freeze=9: observers would never see a value"),
        ("quantize-prepare{include='('}", "not a regular expression: missing )"),
        ("quantize-prepare{weight='channel'}", "did you mean 'weights'?"),
    ],
)
def test_bad_options(spec: str, message: str) -> None:
    with pytest.raises((SpecError, PassError)) as caught:
        Pipeline.parse(spec)
    assert message in str(caught.value)


def test_prepared_twice_is_refused() -> None:
    with pytest.raises(PipelineError, match="run 'quantize-convert' before it"):
        Pipeline.parse("quantize-prepare,quantize-prepare").run(
            small_program(Shared(), x=torch.randn(2, 4))
        )


def test_a_value_that_is_written_to_between_two_linears_is_quantized_twice() -> None:
    class Written(Shared):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(x)
            first = self.up(hidden)
            hidden.view(-1).mul_(3.0)
            result: Tensor = first + self.side(hidden)
            return result

    batch = {"x": torch.randn(5, 4)}
    program = small_program(Written(), x=batch["x"])
    found = Pipeline.parse("quantize-prepare").run(program)
    calibrate(found, [batch])
    torch.testing.assert_close(found(**batch), program(**batch), atol=0.1, rtol=0.0)
    assert {"up_input_maximum", "side_input_maximum"} <= {
        name.replace(".", "_") for name in found.named_tensors()
    }


def test_matrices_of_other_operators_are_told() -> None:
    class Matrices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.first = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 4))
            self.second, self.third = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
            self.fixed = nn.Buffer(torch.ones(4, 4))
            self.convolution = nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.addmm(self.bias, x, self.first) @ self.second.t() @ self.fixed
            hidden = torch.einsum("bi,oi->bo", hidden, self.third)
            result: Tensor = self.convolution(hidden[:, :, None])
            return result

    program = small_program(Matrices(), x=torch.ones(3, 4))
    found = Pipeline.parse("quantize-prepare{on_no_match=ignore}").run(program).history[-1]
    names = [skip.where for skip in found.skipped]
    assert names == ["first", "second", "third", "convolution.weight"]
    assert str(found.skipped[0]).endswith(
        "(aten.addmm) multiplies by it; only linears are quantized"
    )
