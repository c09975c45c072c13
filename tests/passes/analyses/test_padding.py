"""Which inputs are 1 for tokens and 0 for padding, and what passes do with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program, capture
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.padding import marks_tokens
from tests.programs import shared
from tests.tiny_models import ARCHITECTURES, HandwrittenBlock, example_batch


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masks_of_every_architecture_mark_tokens(name: str) -> None:
    program = shared(name)
    assert marks_tokens(program, program.facts(EncoderStructure).attention_mask or "")


class Inverted(nn.Module):
    """PyTorch's own encoder, whose mask is True for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.layers(self.words(input_ids), src_key_padding_mask=mask)}


class Added(nn.Module):
    """A mask of 0 and -10000 that is added to the scores as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.blocks = nn.ModuleList(HandwrittenBlock(16, 2) for _ in range(2))

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.words(input_ids)
        for block in self.blocks:
            hidden = block(hidden, mask[:, None, None])
        return {"last_hidden_state": hidden}


@pytest.mark.parametrize(
    ("model", "mask"),
    [(Inverted, torch.zeros(2, 8, dtype=torch.bool)), (Added, torch.zeros(2, 8))],
)
def test_padding_is_not_taken_for_tokens(model: Any, mask: Tensor) -> None:
    batch = {"input_ids": example_batch(2, 8)["input_ids"], "mask": mask}
    program: Program = capture(model().eval(), batch, dynamic=False)
    assert program.facts(EncoderStructure).attention_mask == "mask"
    pooled = Pipeline.parse("pool-sentences{pooling=mean,on_no_match=ignore}").run(program)
    assert pooled.signature.outputs == ("last_hidden_state",)
    why = "mask: it is not 1 for tokens and 0 for padding, [batch, sequence]"
    assert str(pooled.history[-1].skipped[0]) == why
    taught = Pipeline.parse("distill{logits=0.0,hidden=1.0}").run(
        program, programs={"teacher": program}
    )
    (note,) = taught.history[-1].notes
    assert note.startswith("mask is not 1 for tokens and 0 for padding: padding, if any, counts")
