"""What the cpu target takes for a model of DeBERTa-v3-base's sizes beside PyTorch, on one thread.

python benchmarks/cpu_deberta.py --json cpu_deberta.json

Random weights, 1x128 without padding: fp32, and int8 with 90 % zeros in the linears of the encoder.
PyTorch runs the model of transformers in fp32. All take turns in one process; medians and quartiles
in milliseconds of the calls after three that do not count, and the largest difference of a logit
from the same Program in PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.storage.files import write_json

_SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "vocab_size": 2000,  # looked up alone: the rows that are not read cost nothing
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_WARM = 3


def deberta(density: float = 1.0) -> nn.Module:
    """The model with random weights, a share of those of its encoder's linears not zero."""
    torch.manual_seed(0)
    config: Any = DebertaV2Config(**_SIZES)
    config._attn_implementation = "eager"
    model: Any = DebertaV2ForSequenceClassification(config)
    model.eval()
    for module in model.deberta.encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(torch.rand(module.weight.shape) < density)
    return model  # type: ignore[no-any-return]  # transformers is not typed


def batch(tokens: int = 128) -> dict[str, Tensor]:
    """Token ids without padding."""
    ids = torch.randint(5, _SIZES["vocab_size"], (1, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def int8(program: Program) -> Program:
    """The Program with int8 linears, calibrated on random tokens."""
    prepared = Pipeline.parse("quantize-prepare").run(program)
    calibrate(prepared, [batch(64)])
    return Pipeline.parse("quantize-convert").run(prepared)


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, round by round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + _WARM):
        for name, call in calls.items():
            time.sleep(0.05)
            begin = time.perf_counter()
            call()
            if number >= _WARM:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, given = deberta(), batch()
    programs = {
        "cpu fp32": sparsefx.capture(model, batch(16)),
        "cpu int8, 90 % zeros": int8(sparsefx.capture(deberta(0.1), batch(16))),
    }
    calls: dict[str, Callable[[], Any]] = {"PyTorch fp32": lambda: model(**given)}
    differences: dict[str, float] = {}
    with torch.no_grad():
        for name, program in programs.items():
            compiled = CpuTarget(threads=1).lower(program.eval())
            difference = compiled(**given)["logits"] - program(**given)["logits"]
            differences[name] = float(difference.abs().max())
            calls[name] = lambda compiled=compiled: compiled(**given)  # type: ignore[misc]
        found = timed(calls, options.rounds)
    for name, times in found.items():
        low, middle, high = np.percentile(times, [25, 50, 75])
        off = f", logits differ by {differences[name]:.1e}" if name in differences else ""
        sys.stdout.write(f"{name}: {middle:.1f} ms ({low:.1f}-{high:.1f}){off}\n")
    if options.json:
        write_json(options.json, {"ms": found, "differences": differences})


if __name__ == "__main__":
    main()
