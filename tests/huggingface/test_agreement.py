"""A folder of transformers is written only if its model computes what the Program computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from sparsefx import Pipeline, Program, function_pass
from sparsefx.errors import UnrepresentableError
from sparsefx.huggingface import capture_tokens, load_pretrained, save_pretrained
from sparsefx.instruments.timing import random_batch
from sparsefx.passes.quantize.calibrate import calibrate
from tests.tiny_models import small_bert, tiny

aten = torch.ops.aten


@function_pass("gelu-to-relu")
def gelu_to_relu(program: Program, ctx: Any) -> int:
    """Replaces GELU by ReLU."""
    found = program.graph.find_nodes(op="call_function", target=aten.gelu.default)
    for node in found:
        with ctx.rewriter.before(node):
            new = ctx.rewriter.call(aten.relu.default, node.args[0])
        ctx.rewriter.replace(node, new)
    return len(found)


@function_pass("tell-configuration")
def tell_configuration(program: Program, ctx: Any) -> int:
    """Says in the configuration that there is ReLU."""
    program.config = {**program.config, "hidden_act": "relu"}
    return 1


def with_relu(*more: Any, passes: str = "") -> Program:
    program = Pipeline((gelu_to_relu(), *more)).run(capture_tokens(tiny("bert-cls")))
    return Pipeline.parse(passes).run(program) if passes else program


def test_another_activation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnrepresentableError,
        match=r"save_pretrained at logits: a model of this configuration computes something else: "
        r"values of up to \S+ differ by up to \S+\n  hint: .*hidden_act",
    ):
        save_pretrained(with_relu(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_what_a_configuration_says_a_folder_is_written(tmp_path: Path) -> None:
    program = with_relu(tell_configuration()).eval()
    again = load_pretrained(str(save_pretrained(program, tmp_path)))
    batch = random_batch(program, 3, 9)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, program(**batch)["logits"])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stage", ["quantize-prepare", "quantize-convert"])
def test_quantized_activations_are_no_difference(relu: bool, stage: str, tmp_path: Path) -> None:
    program = with_relu() if relu else capture_tokens(tiny("bert-cls"))
    program = Pipeline.parse("quantize-prepare,quantize-embeddings").run(program.eval())
    calibrate(program, [random_batch(program, 3, 9)])
    if stage == "quantize-convert":
        program = Pipeline.parse("quantize-convert,simplify{inference=True}").run(program)
    if not relu:
        assert save_pretrained(program, tmp_path).is_dir()
        return
    with pytest.raises(UnrepresentableError, match="computes something else"):
        save_pretrained(program, tmp_path)


@pytest.mark.parametrize("passes", ["pool-sentences", "pool-sentences{pooling='cls'}"])
def test_sentence_vectors_are_compared(passes: str, tmp_path: Path) -> None:
    program = Pipeline.parse(passes).run(capture_tokens(small_bert(BertModel)))
    save_pretrained(program, tmp_path)
    changed = Pipeline((gelu_to_relu(),)).run(program)
    with pytest.raises(UnrepresentableError, match="at sentence_embedding"):
        save_pretrained(changed, tmp_path)


def test_what_cannot_be_compared_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = capture_tokens(tiny("bert-cls"))
    program.signature = program.signature.__class__(
        program.signature.inputs, program.signature.outputs, ("sequence >= 1000",)
    )
    save_pretrained(program, tmp_path)
    assert "no small batch meets the conditions on sizes; not compared" in caplog.text


def test_the_random_numbers_of_the_caller_stay(tmp_path: Path) -> None:
    program = capture_tokens(tiny("bert-cls"))
    before = torch.get_rng_state()
    save_pretrained(program, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
