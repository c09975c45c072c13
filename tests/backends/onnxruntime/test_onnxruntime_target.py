"""The target onnxruntime: one checked file, the same predictions, taps, cost, bad input."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from sparsefx import Pipeline, capture, registry
from sparsefx.backends.onnxruntime import target as module
from sparsefx.backends.onnxruntime.target import OnnxRuntime, OnnxRuntimeCompiled
from sparsefx.backends.reference.target import Reference
from sparsefx.errors import ProgramError, TargetError
from sparsefx.instruments.compare import compare
from sparsefx.passes.analyses.quantized import QuantizedLinears
from tests.int8 import int8
from tests.programs import shared
from tests.tiny_models import example_batch, tiny

SHAPES = [(1, 1), (1, 9), (4, 6)]


@cache
def compiled(options: str = "") -> OnnxRuntimeCompiled:
    return OnnxRuntime(threads=1, sequence=16, repeats=3).lower(int8("bert-cls", options))


def counts() -> Counter[str]:
    return Counter(node.op_type for node in compiled().model.graph.node)


def test_file_is_explicit() -> None:
    graph = compiled().model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    weight = held["bert.encoder.layer.0.attention.self.query.weight"]
    assert weight.data_type == onnx.TensorProto.INT8
    expected = int8().tensor(weight.name).numpy()
    assert np.array_equal(onnx.numpy_helper.to_array(weight), expected)
    assert counts()["QuantizeLinear"] == 17
    assert counts()["DequantizeLinear"] == 17 + 14
    assert counts()["Dropout"] == 0
    assert (compiled().model.opset_import[0].version, compiled().model.producer_name) == (
        21,
        "sparsefx",
    )


@pytest.mark.parametrize(("low", "high"), [(0, 127), (-8, 7), (0, 1000)])
def test_a_range_that_onnx_does_not_have_is_refused(low: int, high: int) -> None:
    program = int8().copy()
    node = program.graph.find_nodes(op="call_function", target=torch.ops.sparsefx.quantize.default)[
        3
    ]
    assert OnnxRuntime().unsupported(program) == ()
    node.args = (*node.args[:3], low, high, *node.args[5:])
    (found,) = OnnxRuntime().unsupported(program)
    assert found.where == f"%{node.name}"
    assert found.reason == f"it quantizes to {low}..{high}; ONNX has 0..255 and -128..127"


def test_a_model_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    held = sum(tensor.nbytes for tensor in int8().named_tensors().values())
    monkeypatch.setattr(module, "_MOST_BYTES", held)
    assert OnnxRuntime().unsupported(int8()) == ()
    monkeypatch.setattr(module, "_MOST_BYTES", held - 1)
    with pytest.raises(TargetError, match="GiB, and an ONNX file holds 2; quantize-convert and"):
        OnnxRuntime().compile(int8())


def test_axes_and_names() -> None:
    graph = compiled().model.graph
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert dims == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "logits": ["batch", 2],
    }
    assert not any(part.metadata_props or part.doc_string for part in graph.node)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ["", "{weights='channel',requantize='none'}"])
def test_predictions_of_the_reference(options: str, shape: tuple[int, int]) -> None:
    batch = example_batch(*shape, seed=4)
    expected = Reference().lower(int8("bert-cls", options))(**batch)["logits"]
    found = compiled(options)(**batch)["logits"]
    assert found.shape == expected.shape
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert (found - expected).abs().max() < 2e-2 * expected.abs().max()


def test_within_one_step_at_the_inputs_of_the_logits() -> None:
    program, batch = int8("bert-cls"), example_batch(4, 9)
    last = program.facts(QuantizedLinears)[-1]
    assert last.weight == "classifier.weight"
    reference = Reference(arithmetic="integer").lower(program)
    found = compare(reference, compiled(), batch, nodes=[last.input.name], steps=1)
    assert [row.node for row in found.rows] == [last.input.name]
    assert found.first is None, str(found)


def test_every_node_agrees_and_a_wrong_one_is_named() -> None:
    program, batch = int8("bert-cls"), example_batch(2, 7)
    same = compare(program, compiled(), batch, tolerance=5e-2, steps=1)
    assert same.first is None, str(same)
    assert len(same.rows) > 80
    wrong = program.copy()
    name = "bert.encoder.layer.1.intermediate.dense.input_scale"
    with torch.no_grad():
        wrong.tensor(name).mul_(1.5)
    found = compare(wrong, compiled(), batch, tolerance=5e-2, steps=1)
    assert found.first is not None
    site = next(s for s in program.facts(QuantizedLinears) if s.input_scale == name)
    assert found.first.node == site.input.name


@pytest.mark.parametrize("model", ["bert-qa", "modernbert"])
def test_float_programs_of_other_architectures(model: str) -> None:
    program, batch = shared(model), example_batch(3, 5)
    other = registry.parse_target("onnxruntime{threads=1}").compile(program)
    with torch.no_grad():
        expected = program(**batch)
    found = other(**batch)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4


def test_t5_with_biased_attention() -> None:
    config = T5Config(d_model=32, num_layers=1, d_kv=8, num_heads=4, vocab_size=100, d_ff=64)
    batch = {"input_ids": torch.randint(100, (2, 8)), "attention_mask": torch.ones(2, 8).long()}
    model: torch.nn.Module = T5EncoderModel(config)
    program = capture(model.eval(), batch)
    target = registry.parse_target("onnxruntime{threads=1}")
    other, batch = target.compile(program), {name: value[:, :5] for name, value in batch.items()}
    with torch.no_grad():
        expected = program(**batch)
    for name, value in other(**batch).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


def test_saved_file_runs_alone(tmp_path: Path) -> None:
    path = compiled().save(tmp_path)
    assert path == tmp_path / "model.onnx"
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = example_batch(2, 5)
    (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    assert np.allclose(logits, compiled()(**batch)["logits"].numpy(), atol=1e-5)
    assert str(tmp_path).encode() not in path.read_bytes()


def test_exact_mode_for_cpus_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_exact_integer_sums", lambda: False)
    session = module.open_session(compiled().model, OnnxRuntime(threads=1))
    batch = example_batch(3, 8)
    found = module.run_session(session, batch)["logits"]
    assert torch.allclose(found, compiled()(**batch)["logits"], atol=2e-2)


def test_cost_and_listing() -> None:
    cost = compiled().cost()
    assert cost.origin == "measured"
    assert 0.0 < cost.total("seconds") < 1.0
    assert "sequence 16, mean of 3 runs" in cost.notes[0]
    assert any(row.op == "MatMulIntegerToFloat" for row in cost.rows)
    lines = compiled().listing().splitlines()
    assert len(lines) == len(compiled().model.graph.node)
    assert sum("= QuantizeLinear(" in line for line in lines) == 17


def test_training_machinery_is_listed() -> None:
    program = Pipeline.parse("magnitude-prune{sparsity=0.5},quantize-prepare").run(
        shared("bert-cls")
    )
    with pytest.raises(TargetError) as caught:
        OnnxRuntime().compile(program)
    assert "run fold-masks before" in str(caught.value)
    assert "run quantize-convert before" in str(caught.value)
    assert "sparsefx.fake_quantize.default has no translation" in str(caught.value)


def test_floats_without_kernels_are_told() -> None:
    model = tiny("handwritten").to(torch.bfloat16)
    program = capture(model, example_batch()).eval()
    with pytest.raises(TargetError) as caught:
        OnnxRuntime().compile(program)
    assert str(caught.value).startswith("onnxruntime: ONNX Runtime does not load the model: ")
    hint = "hint: the model is in bfloat16: call model.float() before the capture"
    assert str(caught.value).endswith(hint)


def test_bad_options_and_inputs() -> None:
    with pytest.raises(TargetError, match="threads=-1: expected at least 0"):
        OnnxRuntime(threads=-1)
    with pytest.raises(ProgramError, match="input 'attention_mask' is missing"):
        compiled()(input_ids=torch.ones(1, 2, dtype=torch.int64))
    wrong = {name: value.float() for name, value in example_batch().items()}
    with pytest.raises(ProgramError, match=r"expected input_ids: int64\[batch, sequence\]"):
        compiled()(**wrong)
    beyond = {**example_batch(), "input_ids": torch.full((2, 8), 10_000)}
    with pytest.raises(ProgramError, match="10000 is outside the table"):
        compiled()(**beyond)
