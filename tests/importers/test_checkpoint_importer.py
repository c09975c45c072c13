"""Checkpoints that were pruned elsewhere become locked Programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
)

from sparsefx.errors import ArtifactError, CaptureError
from sparsefx.importers.checkpoint import import_sparse_checkpoint
from sparsefx.masks import find_masks
from sparsefx.properties import Property
from tests.importers.counting import trained, zeros


@torch.no_grad()
def saved_bert(folder: Path, sparsity: float) -> str:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForSequenceClassification(config)
    for module in model.bert.encoder.modules():
        if isinstance(module, nn.Linear) and sparsity:
            keep = torch.rand_like(module.weight) > sparsity
            module.weight.mul_(keep)
    model.save_pretrained(folder)
    return str(folder)


def test_sparse_checkpoint_is_locked(tmp_path: Path) -> None:
    program = import_sparse_checkpoint(saved_bert(tmp_path / "sparse", 0.8))
    assert {Property.MASKED, Property.LOCKED} <= program.properties
    sites = find_masks(program)
    assert len(sites) == 6
    for site in sites:
        assert torch.equal(program.tensor(site.mask) != 0, program.tensor(site.weight) != 0)


def test_dense_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no matrix of it has a zero"):
        import_sparse_checkpoint(saved_bert(tmp_path / "dense", 0.0))
    with pytest.raises(ArtifactError, match="it was not pruned"):
        import_sparse_checkpoint(saved_bert(tmp_path / "nearly", 0.01))
    assert find_masks(import_sparse_checkpoint(str(tmp_path / "nearly"), least=0.001))


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (ElectraConfig, ElectraForSequenceClassification),
        (AlbertConfig, AlbertForSequenceClassification),
    ],
)
def test_the_linear_behind_narrow_embeddings_is_locked(
    config: type, model: type, tmp_path: Path
) -> None:
    sizes = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 1}
    more = {"num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    made = model(config(**sizes, **more))
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.detach().view(-1)[::2] = 0.0
    made.save_pretrained(tmp_path)
    program = import_sparse_checkpoint(str(tmp_path))
    masked = {site.weight for site in find_masks(program)}
    assert any("embeddings_project" in name or "hidden_mapping_in" in name for name in masked)
    assert not any("word_embeddings" in name for name in masked)
    program = trained(program, 2)
    assert zeros(program, r"(embeddings_project|hidden_mapping_in)\.weight$") == 0.5


def test_files_of_another_model_are_told(tmp_path: Path) -> None:
    folder = saved_bert(tmp_path, 0.8)
    weights = load_file(tmp_path / "model.safetensors")
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    save_file(prefixed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"none of its 25 weights, which hold module\.bert"):
        import_sparse_checkpoint(folder)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    changed = json.dumps({**config, "intermediate_size": 48})
    (tmp_path / "config.json").write_text(changed, encoding="utf-8")
    for labels in (None, 3):
        with pytest.raises(ArtifactError, match=r"dense\.bias is \(64,\) in the files"):
            import_sparse_checkpoint(folder, labels=labels)


def test_a_head_without_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="a head of 0 outputs"):
        import_sparse_checkpoint(saved_bert(tmp_path, 0.8), labels=0)
    assert import_sparse_checkpoint(str(tmp_path), labels=3)  # another head is no fault
