"""The model of `cpu_peers.py`: BERT with heavy-tailed weights, pruned, as Programs and as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.passes.quantize.calibrate import calibrate

Pattern = Literal["unstructured", "1x4"]


def bert(size: str, sparsity: float, pattern: Pattern) -> nn.Module:
    """A classifier with synthetic weights; the linears of its encoder are pruned by magnitude.

    Weights are normal over the root of a uniform variable: heavier tails than a normal, as trained
    weights have. Speed does not depend on what they mean.
    """
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "base": {},
        "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    }[size]
    config: Any = BertConfig(**sizes, num_attention_heads=12)
    config._attn_implementation = "eager"  # the older ONNX exporter takes no fused attention
    model: nn.Module = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder" not in name or weight.dim() != 2:
                continue
            tails = torch.rsqrt(torch.rand_like(weight) * 2 + 0.2)
            weight.copy_(pruned(torch.randn_like(weight) * tails * 0.03, sparsity, pattern))
            weight.div_((1 - sparsity) ** 0.5)  # keeps the spread of activations
    return model.train(False)


def pruned(weight: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """The weight with its smallest entries, or its smallest groups of four in a row, set to 0."""
    groups = weight.reshape(weight.shape[0], -1, 4 if pattern == "1x4" else 1)
    size = groups.abs().sum(-1)
    limit = size.flatten().kthvalue(max(1, int(size.numel() * sparsity))).values
    return (groups * (size > limit)[..., None]).reshape(weight.shape)


def example(rows: int, length: int) -> dict[str, Tensor]:
    """Random token ids without padding."""
    ids = torch.randint(1000, 30000, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def programs(folder: Path, size: str, sparsity: float, pattern: Pattern) -> tuple[Path, Path]:
    """Folders of the fp32 Program and of the int8 Program, made unless they are there."""
    stem = f"{size}-{pattern}-{round(100 * sparsity)}"
    floats, integers = folder / f"{stem}-fp32", folder / f"{stem}-int8"
    if not integers.exists():
        torch.manual_seed(0)
        program = sparsefx.capture(bert(size, sparsity, pattern), example(2, 16))
        program.save(floats)
        quantized(program).save(integers)
    return floats, integers


def quantized(program: Program) -> Program:
    """Calibrated on random batches: int8 weights per row, uint8 activations per tensor."""
    prepared = Pipeline.parse("quantize-prepare{weights='channel'}").run(program)
    calibrate(prepared, [example(1, 64), example(1, 64)])
    return Pipeline.parse("quantize-convert").run(prepared)


def onnx(path: Path, size: str, sparsity: float, pattern: Pattern) -> Path:
    """The fp32 model as ONNX with dynamic shapes (opset 14: what DeepSparse reads)."""
    if path.exists():
        return path
    model = bert(size, sparsity, pattern)
    batch = example(2, 16)
    names = list(batch)
    axes = {name: {0: "batch", 1: "sequence"} for name in names}

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
            result: Tensor = self.model(ids, attention_mask=mask, token_type_ids=types).logits
            return result

    torch.onnx.export(
        Logits(),
        tuple(batch.values()),
        str(path),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=14,
        dynamo=False,
    )
    return path
