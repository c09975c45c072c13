"""Recipes of other tools, in the form in which these write them, and checkpoints with zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsefx.cli import main
from sparsefx.errors import RecipeError
from sparsefx.huggingface import capture_tokens
from sparsefx.importers.files import import_recipe, import_text
from sparsefx.masks import find_masks
from sparsefx.recipe import Recipe
from sparsefx.recipe.amounts import parse_pipeline
from tests.tiny_models import tiny

PRUNE_QUANT = """
num_epochs: 30
init_lr: 5e-5
prune_end: eval(num_epochs * 0.6)
qat_epochs: 3

training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0
    end_epoch: eval(num_epochs)
    lr_func: linear
    init_lr: eval(init_lr)
    final_lr: 0.0

pruning_modifiers:
  - !GMPruningModifier
    params:
      - re:bert.encoder.layer.*.attention.self.query.weight
      - re:bert.encoder.layer.*.output.dense.weight
    start_epoch: 3
    end_epoch: eval(prune_end)
    init_sparsity: 0.05
    final_sparsity: 0.8
    inter_func: cubic
    update_frequency: 0.27
    leave_enabled: False
    mask_type: [1, 4]
  - !LayerPruningModifier
    layers: [bert.encoder.layer.1]

distillation_modifiers:
  - !DistillationModifier
    hardness: 1.0
    temperature: 5.5
    distill_output_keys: [logits]

quantization_modifiers:
  - !QuantizationModifier
    start_epoch: eval(num_epochs - qat_epochs)
    disable_quantization_observer_epoch: 28.5
    freeze_bn_stats_epoch: 28.5
    quantize_embeddings: 0
    quantize_linear_activations: 0
    exclude_module_types: ['LayerNorm', 'Tanh']
    submodules: [bert.embeddings, bert.encoder, classifier]
"""

TRANSFER = """<!-- Licensed under the Apache License -->
---
num_epochs: &num_epochs 8
training_modifiers:
  - !EpochRangeModifier
      end_epoch: *num_epochs
      start_epoch: 0.0
  - !SetLearningRateModifier
      start_epoch: 0.0
      learning_rate: 1.5e-4
constant_modifiers:
  - !ConstantPruningModifier
      start_epoch: 0.0
      params: __ALL_PRUNABLE__
regularization_modifiers:
  - !SetWeightDecayModifier
      start_epoch: 0.0
      weight_decay: 0.0
---
# A recipe
"""

STAGED = """
extra: 1
sparsification_stage:
  num_epochs: 4
  training_modifiers:
    - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(num_epochs + extra)}
  pruning_modifiers:
    - !MagnitudePruningModifier
        params: __ALL_PRUNABLE__
        start_epoch: 0.0
        end_epoch: 4.0
        init_sparsity: 0.0
        final_sparsity: 0.5
        mask_type: "2:4"
quantization_stage:
  training_modifiers:
    - !EpochRangeModifier {start_epoch: 5.0, end_epoch: 7.0}
  quantization_modifiers:
    - !QuantizationModifier {start_epoch: 5.0}
"""

RESEARCH_PRUNING = {
    "begin_pruning_step": 0,
    "end_pruning_step": 80000,
    "init_strategy": "uniform",
    "not_to_prune": ["cls", "teacher"],
    "policy_begin_step": 0,
    "policy_end_step": 50000,
    "prune_layer_types": {"Linear": {"name": "weight"}},
    "pruning_fn": "unstructured_magnitude",
    "pruning_fn_default_kwargs": {"initial_sparsity": 0.0, "target_sparsity": 0.9},
    "pruning_frequency": 1000,
    "scheduler": "iterative",
}
RESEARCH_LOCK = {
    "not_to_prune": ["qa_outputs", "pooler", "teacher"],
    "prune_layer_types": {"Linear": {"name": "weight"}, "QuantizedLinear": {"name": "weight"}},
    "pruning_fn": "pattern_lock",
    "scheduler": "one_shot",
}
RESEARCH_QUANTIZATION = {
    "quantization_begin": 0,
    "not_to_requantize_output": ["output.dense", "value", "classifier"],
    "not_to_quantize": ["teacher"],
}

COMPRESSOR = """
version: 1.0
model:
  name: "bert-mini"
  framework: "pytorch"
pruning:
  approach:
    weight_compression_v2:
      start_step: 0
      end_step: 1000
      pruning_op_types: ["Linear"]
      target_sparsity: 0.9
      max_sparsity_ratio_per_op: 0.98
      pruners:
        - !PrunerV2
            excluded_op_names: ["classifier", "pooler", ".*embeddings*"]
            op_names: ['layer.1.*']
            pattern: "4x1"
            pruning_frequency: 50
            pruning_scope: "global"
            pruning_type: "magnitude"
            sparsity_decay_type: "cube"
        - !PrunerV2
            op_names: ['layer.2.*']
            pattern: "2:4"
            pruning_type: "snip_momentum"
"""


def test_sparseml_is_cut_where_quantization_begins() -> None:
    recipe, left_out, carried = import_text(PRUNE_QUANT, name="bert")
    sparse, int8 = recipe.stages
    assert (sparse.name, int8.name) == ("sparse", "int8")
    assert sparse.training
    assert int8.training
    assert (sparse.training.epochs, int8.training.epochs) == (27.0, 3.0)
    assert sparse.pipeline[0] == (
        "magnitude-prune{sparsity=0.8,initial_sparsity=0.05,begin=11.1111%,end=66.6667%,"
        "frequency=1%,pattern='1x4',roles=('encoder','pooler','head','embedding','other',),"
        "include=('^bert.encoder.layer.*.attention.self.query.weight',"
        "'^bert.encoder.layer.*.output.dense.weight',)}"
    )
    assert sparse.pipeline[1] == "distill{logits=1.0,temperature=5.5,outputs=('logits',)}"
    assert (sparse.teacher, sparse.training.label_weight) == ("./teacher", 0.0)
    assert sparse.after == ("strip-distillation",)
    assert sparse.training.optimizer.learning_rate == 5e-5
    assert int8.training.optimizer.learning_rate == pytest.approx(5e-6)
    assert int8.pipeline[:2] == (
        "pattern-lock",
        (
            "quantize-prepare{requantize='none',freeze=50%,"
            "include=('^bert\\\\.encoder\\\\.','^classifier\\\\.',)}"
        ),
    )
    assert int8.after[-3:] == ("fold-masks", "quantize-convert", "simplify{inference=True}")
    places = {item.where for item in left_out}
    assert "GMPruningModifier.leave_enabled" in places
    assert "LayerPruningModifier" in places
    assert "QuantizationModifier.freeze_bn_stats_epoch" in places
    assert "QuantizationModifier.quantize_embeddings" not in places
    assert any(line.startswith("GMPruningModifier -> magnitude-prune") for line in carried)
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_sparseml_front_matter_locks() -> None:
    recipe, left_out, _ = import_text(TRANSFER, name="transfer")
    (stage,) = recipe.stages
    assert stage.pipeline == ("pattern-lock",)
    assert stage.after == ("fold-masks",)
    assert stage.training
    assert stage.training.schedule.kind == "constant"
    assert stage.training.optimizer.learning_rate == 1.5e-4
    assert stage.training.optimizer.weight_decay == 0.0
    assert left_out == ()


def test_sparseml_stages_count_from_their_own_start() -> None:
    recipe, left_out, _ = import_text(STAGED, name="staged")
    first, second = recipe.stages
    assert (first.name, second.name) == ("sparsification-sparse", "quantization-int8")
    assert first.training
    assert second.training
    assert (first.training.epochs, second.training.epochs) == (5.0, 2.0)
    assert "end=80%" in first.pipeline[0]
    assert "pattern='2:4'" in first.pipeline[0]
    assert second.pipeline == ("pattern-lock", "quantize-prepare{requantize='all'}")
    assert [item.where for item in left_out].count("learning rate") == 2


@pytest.mark.parametrize("kind", ["ACDCPruningModifier", "MFACPruningModifier"])
def test_sparseml_criterion_that_is_not_here_is_listed(kind: str) -> None:
    recipe, left_out, _ = import_text(PRUNE_QUANT.replace("GMPruningModifier", kind), name="other")
    assert all("magnitude-prune" not in text for s in recipe.stages for text in s.pipeline)
    assert any(item.where == kind and "criterion" in item.reason for item in left_out)


@pytest.mark.parametrize(
    ("change", "message", "where"),
    [
        (("num_epochs * 0.6", "epochs * 0.6"), "'epochs' is not defined", "eval(epochs * 0.6)"),
        (("num_epochs * 0.6", "prune_end"), "'prune_end' is defined by itself", "eval(prune_end)"),
        (("num_epochs * 0.6", "open('x')"), "is no arithmetic", "eval(open('x'))"),
        (("num_epochs * 0.6", "2 * 'x'"), "is no arithmetic", "eval(2 * 'x')"),
        (("num_epochs * 0.6", "int(1e999)"), "cannot convert float infinity", "eval(int(1e999))"),
        (("num_epochs * 0.6", "min(1)"), "'min(1)': 'int' object", "eval(min(1))"),
        (("0.8\n", "high\n"), "expected a share of zeros", "GMPruningModifier.final_sparsity"),
        (("!EpochRange", "!Epochs"), "", ""),
    ],
)
def test_sparseml_mistakes(change: tuple[str, str], message: str, where: str) -> None:
    text = PRUNE_QUANT.replace(*change)
    if not message:
        assert len(import_text(text, name="bert").recipe.stages) == 2
        return
    with pytest.raises(RecipeError) as raised:
        import_text(text, name="bert", who="bert.yaml")
    assert message in str(raised.value)
    assert (raised.value.who, raised.value.where) == ("bert.yaml", where)


def test_research_package_ramp_is_that_of_prune_ofa() -> None:
    recipe, left_out, _ = import_text(json.dumps(RESEARCH_PRUNING), name="mlm")
    (stage,) = recipe.stages
    assert stage.pipeline == (
        (
            "magnitude-prune{sparsity=0.9,end=50000,frequency=1000,update_end=80000,mask='soft',"
            "ties='drop',roles=('encoder','pooler','head','other',),exclude=('cls',)}"
        ),
    )
    assert stage.training
    assert stage.training.steps == 80_000
    assert stage.after == ("fold-masks",)
    assert [item.where for item in left_out] == ["number of steps", "the run"]


def test_research_package_lock_and_quantization() -> None:
    lock = import_text(json.dumps(RESEARCH_LOCK), name="lock").recipe.stages[0]
    assert lock.pipeline == ("pattern-lock{exclude=('qa_outputs','pooler',)}",)
    int8 = import_text(json.dumps(RESEARCH_QUANTIZATION), name="int8").recipe.stages[0]
    assert int8.pipeline == (
        "quantize-prepare{requantize='^(?!.*(?:output.dense|value|classifier))'}",
    )
    assert int8.after == ("quantize-convert",)


def test_neural_compressor_lists_the_criterion_it_lacks() -> None:
    recipe, left_out, _ = import_text(COMPRESSOR, name="inc")
    (stage,) = recipe.stages
    assert stage.pipeline == (
        (
            "magnitude-prune{sparsity=0.9,end=1000,exponent=0.45,frequency=50,scope='global',"
            "pattern='4x1',ties='drop',roles=('encoder','pooler','other',),include=('layer.1.*',),"
            "exclude=('classifier','pooler','.*embeddings*',)}"
        ),
    )
    assert stage.after == ("fold-masks",)
    listed = {item.where: item.reason for item in left_out}
    assert "'snip_momentum' is not here" in listed["pruners[1].pruning_type"]
    assert "pruners[0].max_sparsity_ratio_per_op" in listed
    assert "model" in listed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bits": 8}', "the format is not known (its keys: bits)"),
        ('{"bits": ', "not JSON"),
        ("a: [1", "not YAML"),
        ("- 1\n- 2\n", "it holds a list; expected keys with values"),
        ("name: x\nstages: []\n", "it is a sparsefx recipe already"),
        ("s_stage:\n  obcq_modifiers:\n    SparseGPTModifier: {sparsity: 0.5}\n", "llm-compressor"),
        ("m:\n  - !SetLearningRateModifier {learning_rate: 0.1}\n", "how many epochs"),
        (json.dumps({**RESEARCH_LOCK, "pruning_fn": "dnw"}), "the pruning method 'dnw'"),
        (COMPRESSOR.replace('"magnitude"', "snip"), "no pruner can be carried over"),
        (
            (
                '{"pruning_fn": "unstructured_magnitude", "scheduler": "iterative", '
                '"policy_end_step": "x", "pruning_fn_default_kwargs": {"target_sparsity": 0.8}}'
            ),
            "a value of the file is of another kind",
        ),
        ("pruners: [{pruning_type: magnitude, target_sparsity: most}]", "'most'"),
        ("pruners: [{pruning_type: magnitude, pattern: 1x1, target_sparsity: -1}]", "sparsity"),
        ("pruners: [{pruning_type: magnitude, start_step: 2026-99-01}]", "month must be in 1..12"),
        ("pruners: [{pruning_type: magnitude, end_step: some}]", "pruners[0].end_step: expected"),
        (COMPRESSOR.replace('"magnitude"', "snip"), "movement-prune is nearest"),
        (COMPRESSOR.replace('"4x1"', "channelx1"), "'channelx1': whole channels"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        import_text(text, name="file", who="file.yaml")
    assert message in str(raised.value)
    assert raised.value.who == "file.yaml"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the file cannot be read"):
        import_recipe(tmp_path / "none.yaml")


def test_command_writes_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "bert.yaml", tmp_path / "mine.yaml"
    source.write_text(PRUNE_QUANT, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), "--out", str(out)])
    assert not ended.value.code
    assert Recipe.load(out).name == "bert"
    shown = capsys.readouterr().out
    assert "not carried over" in shown
    assert "LayerPruningModifier: it names the layers that go" in shown
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), "--out", str(out)])
    assert ended.value.code == 2
    assert "there is a file already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), "--out", str(out), "--overwrite"])
    assert not ended.value.code
    source.write_text("bits: 8\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), "--out", str(out)])
    assert ended.value.code == 2
    assert "the format is not known" in capsys.readouterr().err


def test_imported_passes_find_their_weights() -> None:
    sparse, int8 = import_text(PRUNE_QUANT, name="bert").recipe.stages
    texts = (sparse.pipeline[0], *int8.pipeline[:2])
    program = parse_pipeline(texts, 100).run(capture_tokens(tiny("bert-cls")))
    pruned = {site.weight.rpartition("layer.0.")[2] for site in find_masks(program)}
    assert {"attention.self.query.weight", "output.dense.weight"} <= pruned
    quantized = program.graph.find_nodes(
        op="call_function", target=torch.ops.sparsefx.fake_quantize_weight.default
    )
    assert len(quantized) == 13  # six in each of two layers, and the head; not the pooler
