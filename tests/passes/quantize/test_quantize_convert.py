"""quantize-convert and calibration: equal to the prepared Program, zeros, bad input."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, PipelineError, ProgramError, VerifyError
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.passes.quantize.convert import QuantizeConvert
from sparsefx.passes.quantize.sites import find_linears
from sparsefx.testing import assert_pass, small_program
from sparsefx.verify import verify
from tests.programs import shared
from tests.tiny_models import example_batch

CONVERT = Pipeline.parse("quantize-convert")


@functools.cache
def captured(model: str, zeros: float = 0.0) -> Program:
    program = shared(model).copy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in find_linears(program)[0]:
            weight = program.tensor(site.weight)
            weight.mul_(torch.rand(weight.shape, generator=generator) >= zeros)
    return program


@functools.cache
def calibrated_once(spec: str, model: str, zeros: float) -> Program:
    program = Pipeline.parse(spec).run(captured(model, zeros))
    calibrate(program, [example_batch(4, length, seed=length) for length in (5, 8, 13)])
    return program


def calibrated(
    spec: str = "quantize-prepare", model: str = "bert-cls", zeros: float = 0.0
) -> Program:
    return calibrated_once(spec, model, zeros).copy()


@functools.cache
def converted_once() -> Program:
    return CONVERT.run(calibrated())


GOLDEN = """
    %dequantize = sparsefx.dequantize(%_0_weight, %_0_weight_scale, %_0_weight_zero_point{axis})
    %quantize = sparsefx.quantize(%input_1, %_0_input_scale, %_0_input_zero_point, 0, 255)
    %dequantize_1 = sparsefx.dequantize(%quantize, %_0_input_scale, %_0_input_zero_point)
    %linear = aten.linear(%dequantize_1, %dequantize, %_0_bias)
    %quantize_1 = sparsefx.quantize(%linear, %_0_output_scale, %_0_output_zero_point, 0, 255)
    %dequantize_2 = sparsefx.dequantize(%quantize_1, %_0_output_scale, %_0_output_zero_point)
    %tanh = aten.tanh(%dequantize_2)
    return {{output: %tanh}}
"""


@pytest.mark.parametrize(
    ("weights", "axis", "shape"), [("tensor", "", ()), ("channel", ", 0", (2,))]
)
def test_golden(weights: str, axis: str, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh())
    program = small_program(model, input=torch.randn(3, 4))
    program = Pipeline.parse(f"quantize-prepare{{weights='{weights}'}}").run(program)
    calibrate(program, [{"input": torch.randn(3, 4)}])
    after = GOLDEN.format(axis=axis)
    found = assert_pass(QuantizeConvert(), program, after, applied=1, skipped=[])
    assert found.active == ()
    kinds = {name: (t.dtype, tuple(t.shape)) for name, t in found.named_tensors().items()}
    assert kinds == {
        "0.weight": (torch.int8, (2, 4)),
        "0.bias": (torch.float32, (2,)),
        "0.weight_scale": (torch.float32, shape),
        "0.weight_zero_point": (torch.int32, shape),
        "0.input_scale": (torch.float32, ()),
        "0.input_zero_point": (torch.int32, ()),
        "0.output_scale": (torch.float32, ()),
        "0.output_zero_point": (torch.int32, ()),
    }


@pytest.mark.parametrize(
    ("model", "weights", "span"),
    [
        ("bert-cls", "tensor", "narrow"),
        ("albert", "channel", "full"),
        ("bert-mlm", "tensor", "reduced"),
    ],
)
def test_outputs_equal_the_prepared_program(model: str, weights: str, span: str) -> None:
    program = calibrated(f"quantize-prepare{{weights='{weights}',weight_range='{span}'}}", model)
    converted = CONVERT.run(program)
    for shape in ((1, 3), (3, 9)):
        batch = example_batch(*shape)
        assert torch.equal(converted(**batch)["logits"], program(**batch)["logits"])
    low, high = {"full": (-128, 127), "narrow": (-127, 127), "reduced": (-64, 63)}[span]
    integers = [t for t in converted.named_tensors().values() if t.dtype == torch.int8]
    assert min(int(t.min()) for t in integers) >= low
    assert max(int(t.max()) for t in integers) <= high


def test_zeros_stay_zero_at_90_percent() -> None:
    program = calibrated(zeros=0.9)
    converted = CONVERT.run(program)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    zero = program.tensor(name) == 0
    assert zero.float().mean() > 0.85
    assert not converted.tensor(name)[zero].any()
    batch = example_batch()
    assert torch.equal(converted(**batch)["logits"], program(**batch)["logits"])
    assert "are now 0" in converted.history[-1].notes[1]


def test_close_to_float() -> None:
    model = captured("bert-cls")
    converted = converted_once()
    batch = example_batch(4, 8, seed=8)
    with torch.no_grad():
        difference = converted(**batch)["logits"] - model(**batch)["logits"]
    assert difference.abs().max() < 5e-3


def test_round_trip(tmp_path: Path) -> None:
    converted = converted_once()
    again = Program.load(converted.save(tmp_path / "int8"))
    assert again.fingerprint() == converted.fingerprint()
    assert torch.equal(again(**example_batch())["logits"], converted(**example_batch())["logits"])


def test_calibration_tells_of_an_id_outside_the_vocabulary() -> None:
    program = Pipeline.parse("quantize-prepare").run(shared("bert-cls"))
    batch = example_batch(2, 5)
    batch["input_ids"][1, 3] = 10_000
    with pytest.raises(ProgramError, match=r"at input_ids: 10000 is outside the table 'bert\.emb"):
        calibrate(program, [example_batch(2, 5), batch])


def test_whole_way_with_masks() -> None:
    spec = "magnitude-prune{sparsity=0.9,end=0,begin=0},pattern-lock,quantize-prepare"
    program = Pipeline.parse(spec).run(shared("bert-cls"))
    batch = example_batch(4, 7)
    calibrate(program, [batch])
    folded = Pipeline.parse("fold-masks,quantize-convert").run(program)
    assert torch.equal(folded(**batch)["logits"], program(**batch)["logits"])
    name = "bert.encoder.layer.1.output.dense.weight"
    masked = program.tensor(name + "_mask") == 0
    assert masked.float().mean() == pytest.approx(0.9, abs=0.01)
    assert not folded.tensor(name)[masked].any()
    with pytest.raises(PipelineError, match="'fold-masks' before it"):
        CONVERT.run(program)


@pytest.mark.parametrize(
    "order", ["pattern-lock,quantize-prepare,distill", "pattern-lock,distill,quantize-prepare"]
)
def test_whole_way_with_a_teacher(order: str) -> None:
    teacher, batch = shared("bert-cls"), example_batch(4, 7)
    text = f"magnitude-prune{{sparsity=0.9,begin=0,end=0}},{order}"
    program = Pipeline.parse(text).run(teacher, programs={"teacher": teacher}).train()
    assert "14 linears" in " ".join(note for entry in program.history for note in entry.notes)
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-3)
    loss = program(**batch)["loss"]
    torch.autograd.backward(loss)
    optimizer.step()
    program.step()
    stripped = Pipeline.parse("strip-distillation,fold-masks").run(program).eval()
    converted = Pipeline.parse("quantize-convert,simplify").run(stripped)
    assert torch.equal(converted(**batch)["logits"], stripped(**batch)["logits"])
    assert converted.active == ()


def test_verifier_sees_broken_quantizers() -> None:
    program = converted_once().copy()
    with torch.no_grad():
        program.tensor("classifier.input_scale").fill_(-1.0)
        program.tensor("bert.pooler.dense.input_zero_point").fill_(300)
        program.tensor("classifier.weight_zero_point").fill_(1)
    with pytest.raises(VerifyError) as caught:
        verify(program)
    assert len(caught.value.violations) == 3
    assert "the scale classifier.input_scale is not positive and finite" in str(caught.value)
    assert "bert.pooler.dense.input_zero_point is outside 0..255" in str(caught.value)
    assert "the zero point of weight classifier.weight is not 0" in str(caught.value)


def test_calibration_restores_the_mode_and_changes_ranges_alone() -> None:
    program = Pipeline.parse("quantize-prepare").run(captured("bert-cls"))
    program.train()
    weights = {name: t.clone() for name, t in program.module.named_parameters()}
    assert calibrate(program, [example_batch()]) == 1
    assert program.training
    assert all(torch.equal(t, weights[name]) for name, t in program.module.named_parameters())


def test_missing_calibration_lists_every_observer() -> None:
    program = Pipeline.parse("quantize-prepare").run(captured("bert-cls"))
    with pytest.raises(PassError) as caught:
        CONVERT.run(program)
    assert "17 quantizers cannot be converted" in str(caught.value)
    assert "classifier.input has seen no data" in str(caught.value)
    assert "calibrate(program, batches)" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_ranges_and_weights_are_named(value: float) -> None:
    program = calibrated()
    with torch.no_grad():
        program.tensor("classifier.input_maximum").fill_(value)
        program.tensor("bert.pooler.dense.weight")[0, 0] = value
    with pytest.raises(PassError, match=r"2 quantizers cannot be converted") as caught:
        CONVERT.run(program)
    assert "bert.pooler.dense.weight holds NaN or infinity" in str(caught.value)
    assert "classifier.input holds the range" in str(caught.value)


def test_not_begun() -> None:
    with pytest.raises(PassError, match="has not begun: step 0 of begin=10"):
        CONVERT.run(calibrated("quantize-prepare{begin=10}"))


def test_not_prepared() -> None:
    program = captured("bert-cls")
    with pytest.raises(PipelineError, match="run 'quantize-prepare' before it"):
        CONVERT.run(program)
    with pytest.raises(PassError, match="run 'quantize-prepare' before it"):
        calibrate(program, [example_batch()])


def test_bad_calibration_data() -> None:
    program = Pipeline.parse("quantize-prepare").run(captured("bert-cls"))
    with pytest.raises(PassError, match="no batch"):
        calibrate(program, [])
    with pytest.raises(ProgramError, match="input 'attention_mask' is missing"):
        calibrate(program, [{"input_ids": torch.ones(1, 3, dtype=torch.int64)}])
