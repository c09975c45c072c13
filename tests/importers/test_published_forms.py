"""What published recipes of other tools hold besides the plain forms of test_importers."""

from __future__ import annotations

import pytest

from sparsefx.errors import RecipeError
from sparsefx.importers.files import import_text
from sparsefx.recipe.amounts import parse_pipeline

RAMP = """
num_epochs: &num_epochs 10
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: *num_epochs}
  - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: 1.5e-4}
  - !GMPruningModifier
    params: ["re:bert.encoder.layer.*.output.dense.weight"]
    start_epoch: 1
    end_epoch: 8
    init_sparsity: 0.05
    final_sparsity: 0.8
    inter_func: cubic
    update_frequency: 1
    mask_type: [1, 4]
"""


def test_sparseml_second_order_and_movement() -> None:
    settings = "num_grads: 1024\n    damp: 1e-7\n    fisher_block_size: 4\n    mask_type: [1, 4]"
    text = RAMP.replace("GMPruning", "OBSPruning").replace("mask_type: [1, 4]", settings)
    recipe, left_out, _ = import_text(text, name="obs")
    (first, *_) = recipe.stages[0].pipeline
    assert first.startswith("obert-prune{sparsity=0.8,initial_sparsity=0.05,")
    assert "pattern='1x4',gradients=1024,block=4,damp=1e-07" in first
    assert parse_pipeline((first,), 100)
    assert "OBSPruningModifier.grad_sampler_kwargs" in [item.where for item in left_out]
    recipe, _, _ = import_text(RAMP.replace("GMPruning", "MovementPruning"), name="move")
    assert recipe.stages[0].pipeline[0].startswith("movement-prune{sparsity=0.8,")


def test_sparseml_variables_may_be_set_again() -> None:
    recipe, _, _ = import_text("num_epochs: &num_epochs 8\n" + RAMP, name="twice")
    assert recipe.stages[0].training
    assert recipe.stages[0].training.epochs == 10


def test_neural_compressor_in_its_older_words() -> None:
    text = """
pruning:
  approach:
    weight_compression:
      target_sparsity: 0.9
      end_step: 100
      excluded_names: [classifier]
      prune_layer_type: [Linear]
      pruners:
        - !Pruner {prune_type: basic_magnitude, prune_frequency: 20, extra_excluded_names: [key]}
        - !Pruner {prune_type: group_lasso}
"""
    recipe, left_out, _ = import_text(text, name="old")
    (text,) = recipe.stages[0].pipeline
    assert "frequency=20,scope='global',pattern='4x1',ties='drop'" in text
    assert text.endswith("exclude=('classifier','key',)}")
    listed = {item.where: item.reason for item in left_out}
    assert "'group_lasso' is not here" in listed["pruners[1].pruning_type"]


EPOCHS = """
version: 1.0
model: {name: bert, framework: pytorch}
pruning:
  train:
    end_epoch: 10
    optimizer: {AdamW: {learning_rate: 1e-3, weight_decay: 0.01}}
  approach:
    weight_compression:
      initial_sparsity: 0.1
      target_sparsity: 0.8
      start_epoch: 1
      end_epoch: 4
      pruners:
        - !Pruner {prune_type: basic_magnitude, names: [encoder.0.weight], method: per_tensor}
        - !Pruner {prune_type: gradient_sensitivity, parameters: {target: 8}}
"""


def test_neural_compressor_of_version_1_counts_epochs() -> None:
    recipe, left_out, carried = import_text(EPOCHS, name="one")
    (stage,) = recipe.stages
    (text,) = stage.pipeline
    assert text.startswith(
        "magnitude-prune{sparsity=0.8,initial_sparsity=0.1,begin=10%,end=40%,frequency=10%,"
    )
    assert "pattern" not in text  # the blocks that 2.x begins with were not in 1.x
    assert text.endswith(r"include=('^encoder\\.0\\.weight$',)}")
    assert parse_pipeline((text,), 100)
    assert stage.training
    assert stage.training.epochs == 10
    assert stage.training.optimizer.learning_rate == 1e-3
    listed = {item.where: item.reason for item in left_out}
    assert "prune-heads with score-heads" in listed["pruners[1].prune_type"]
    assert "pruners[0].method" in listed
    assert any(line.startswith("pruning.train.optimizer.AdamW.learning_rate") for line in carried)


@pytest.mark.parametrize(
    ("section", "pruner"),
    [
        ("{target_sparsity: 0.8, ", "{prune_type: basic_magnitude}"),
        ("{target_sparsity: 0.8, ", "{names: [encoder.0.weight]}"),
        ("{update_frequency: 2.0, target_sparsity: 0.8, ", "{}"),
    ],
)
def test_neural_compressor_of_version_1_is_known_by_other_words_too(
    section: str, pruner: str
) -> None:
    text = f"pruning: {{approach: {{weight_compression: {section}pruners: [!Pruner {pruner}]}}}}}}"
    recipe, _, _ = import_text(text, name="one")
    assert recipe.source.endswith("1.x.")
    assert recipe.stages[0].training
    assert recipe.stages[0].training.epochs == 4  # where 1.x ends its ramp unless told


def test_neural_compressor_of_version_2_beside_an_empty_section() -> None:
    text = "pruning: {approach: }\npruners: [!Pruner {pruning_type: magnitude}]"
    assert import_text(text, name="two")[0].source.endswith("2.x.")


def test_neural_compressor_that_may_be_of_either_version_is_refused() -> None:
    text = "pruning: {approach: {weight_compression: {target_sparsity: 0.8, pruners: [PRUNER]}}}"
    with pytest.raises(RecipeError, match="add what it stands for: 'end_epoch: 4'"):
        import_text(text.replace("PRUNER", "!Pruner {pattern: 1x1}"), name="either")
    two, _, _ = import_text(text.replace("PRUNER", "!Pruner {pruning_type: magnitude}"), name="two")
    assert two.source.endswith("2.x.")


def test_neural_compressor_of_version_1_mistakes() -> None:
    for change, told in (
        (("end_epoch: 4", "end_epoch: four"), "found 'four'"),
        (("basic_magnitude", "group_lasso"), "no pruner can be carried over"),
    ):
        with pytest.raises(RecipeError, match=told):
            import_text(EPOCHS.replace(*change), name="one")
