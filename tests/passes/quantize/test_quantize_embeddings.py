"""quantize-embeddings and gather-integers: int8 tables, read row by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx import Pipeline, Program, function_pass
from sparsefx.huggingface import plain_weights
from sparsefx.passbase import PassContext
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.passes.quantize.embeddings import QuantizeEmbeddings
from sparsefx.passes.quantize.gather_integers import GatherIntegers
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.tiny_models import example_batch, tiny

AFTER = """\
%dequantize = sparsefx.dequantize(%weight, %weight_scale, %weight_zero_point, 0)
%embedding = aten.embedding(%dequantize, %input_1)
return {output: %embedding}
"""
IDS = torch.tensor([[0, 3, 8], [8, 8, 1]])
WORDS = "bert.embeddings.word_embeddings.weight"


def table(rows: int = 9) -> Program:
    return small_program(nn.Embedding(rows, 4), input=IDS)


def test_before_and_after() -> None:
    assert_pass(QuantizeEmbeddings(), table(), AFTER, applied=1, skipped=[])


def test_every_row_has_its_own_scale_and_zeros_stay() -> None:
    program = table()
    weight = program.tensor("weight")
    with torch.no_grad():
        weight[3] *= 1000.0
        weight[8] = 0.0
    small = Pipeline.parse("quantize-embeddings").run(program)
    error = (plain_weights(small)["weight"] - weight).detach().abs().amax(1)
    assert bool((error <= small.tensor("weight_scale") * 0.501).all())
    assert float(error[3]) > 100 * float(error[0])
    assert int(small.tensor("weight")[8].count_nonzero()) == 0
    assert float(error[8]) == 0.0


def test_gathering_integers_changes_no_bit() -> None:
    small = Pipeline.parse("quantize-embeddings").run(table())
    gathered = Pipeline((GatherIntegers(),)).run(small)
    assert not gathered.graph.find_nodes(
        op="call_function", target=torch.ops.sparsefx.dequantize.default
    )
    assert_equal_outputs(small, gathered, {"input": IDS})


def test_gathering_leaves_float_tables_alone() -> None:
    report = Pipeline((GatherIntegers(on_no_match="ignore"),)).run(table()).history[-1]
    assert report.applied == 0
    assert not report.changed


@pytest.mark.parametrize("architecture", ["bert-cls", "distilbert", "mpnet", "deberta"])
def test_a_small_encoder_keeps_its_meaning(architecture: str) -> None:
    program = sparsefx.capture(tiny(architecture), example_batch()).eval()
    small = Pipeline.parse("quantize-embeddings").run(program)
    before, after = (one(**example_batch())["logits"].detach() for one in (program, small))
    assert 0 < float((before - after).abs().max()) < 0.05 * float(before.abs().max())
    sizes = [one.facts(SparsityStats).whole for one in (program, small)]
    tables = sum(
        program.tensor(name).numel() for name in small.named_tensors() if _is_int8(small, name)
    )
    assert sizes[0].dense_bytes == sizes[1].dense_bytes
    assert sizes[0].stored_bytes - sizes[1].stored_bytes == pytest.approx(3 * tables, rel=0.01)


def test_a_table_that_the_decoder_shares_is_left_alone() -> None:
    program = sparsefx.capture(tiny("bert-mlm"), example_batch())
    entry = Pipeline.parse("quantize-embeddings").run(program).history[-1]
    assert [skip.where for skip in entry.skipped] == [WORDS]
    assert "reads it too" in entry.skipped[0].reason
    assert entry.applied == 2


def test_saved_and_loaded_it_is_the_same(tmp_path: object) -> None:
    small = Pipeline.parse("quantize-embeddings").run(table())
    small.save(f"{tmp_path}/saved")
    assert_equal_outputs(small, Program.load(f"{tmp_path}/saved"), {"input": IDS})


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("target", ["reference", "onnxruntime", "cpu"])
def test_targets_compute_with_integer_tables(target: str, ids: torch.dtype) -> None:
    batch = {name: value.to(ids) for name, value in example_batch().items()}
    program = sparsefx.capture(tiny("bert-cls"), batch).eval()
    small = Pipeline.parse("quantize-embeddings").run(program)
    wanted = small(**batch)["logits"]
    found = sparsefx.registry.parse_target(target).compile(small)(**batch)["logits"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _is_int8(program: Program, name: str) -> bool:
    return program.tensor(name).dtype == torch.int8


def test_look_ups_that_a_pass_has_made_anew() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.words(a) * self.words(b)
            return found

    @function_pass("look-up-anew")
    def look_up_anew(program: Program, ctx: PassContext) -> int:
        first, _ = program.graph.find_nodes(
            op="call_function", target=torch.ops.aten.embedding.default
        )
        with ctx.rewriter.before(first):
            new = ctx.rewriter.call(first.target, *first.args)
        ctx.rewriter.replace(first, new)
        return 1

    program = small_program(Twice(), a=IDS, b=IDS)
    found = Pipeline((look_up_anew(), QuantizeEmbeddings())).run(program)
    assert_equal_outputs(program, found, {"a": IDS, "b": IDS}, tolerance=0.1)
