"""What the cpu target says of models, or parts of them, that it does not compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import TargetError


class Patches(nn.Module):
    """A transformer on images: no input holds tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 2)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return {"logits": self.head(self.norm(x)[:, 0])}


def test_a_model_without_tokens_is_refused_before_it_runs() -> None:
    program = sparsefx.capture(Patches().eval(), {"pixel_values": torch.randn(2, 3, 8, 8)})
    target = CpuTarget()
    (found,) = target.unsupported(program)
    assert not found.instead
    said = (
        "cpu packs tokens, but no input is [batch, sequence]: pixel_values [batch, 3, 8, 8]; "
        "use the target reference or onnxruntime"
    )
    assert found.reason == said
    for lower in (target.compile, target.lower):
        with pytest.raises(TargetError) as caught:
            lower(program)
        assert said in str(caught.value)
