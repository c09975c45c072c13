"""Checkpoints that were pruned elsewhere become locked Programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sparsefx.errors import ArtifactError
from sparsefx.importers.checkpoint import import_sparse_checkpoint
from sparsefx.masks import find_masks
from sparsefx.properties import Property


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
