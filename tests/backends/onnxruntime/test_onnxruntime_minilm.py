"""ONNX Runtime on real weights: every quantized value of MiniLM within one step, fed alike."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.onnxruntime.target import OnnxRuntime
from sparsefx.backends.reference.target import Reference
from sparsefx.instruments.compare import compare_fed
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.train.data.assets import minilm_folder

LAYERS = 2


def batch(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 20_000, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def sparse_int8() -> Program:
    """The first layers of all-MiniLM-L6-v2, 80 % sparse by magnitude, calibrated, int8."""
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm_folder(), num_hidden_layers=LAYERS, num_labels=2
    ).eval()
    program = sparsefx.capture(model, batch(2, 8, seed=0))
    steps = "magnitude-prune{sparsity=0.8},fold-masks,quantize-prepare"
    program = Pipeline.parse(steps).run(program)
    calibrate(program, [batch(4, 24, seed=seed) for seed in range(3)])
    return Pipeline.parse("quantize-convert").run(program).eval()


def test_each_quantized_value_of_minilm_is_within_one_step() -> None:
    program = sparse_int8()
    reference = Reference(arithmetic="integer").lower(program)
    found = compare_fed(reference, OnnxRuntime(threads=1), batch(3, 20, seed=9))
    assert found.first is None, str(found)
    assert len(found.rows) >= 6 * LAYERS
    flipped = sum(row.share for row in found.rows[:-1]) / len(found.rows[:-1])
    assert flipped < 1e-3
    assert found.rows[-1].node == "logits"
    assert found.rows[-1].largest < 1e-5
