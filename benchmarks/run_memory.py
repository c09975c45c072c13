"""How much memory a run takes, stage by stage, and its export: of BERT-base unless told otherwise.

python -m benchmarks.run_memory --target cpu

A few steps of a dense, a pruned and an int8 stage, the latter two with a teacher: the same model
is held, and copied, as in hours of training. Weights and texts are random. What is anonymous has to
be in memory; mapped files can be read again, and a system that is short of memory drops them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sparsefx.cli.runs import train_and_report
from sparsefx.recipe import Recipe
from sparsefx.train.data.examples import Examples
from sparsefx.train.evaluation import SessionData
from sparsefx.train.events import Event, StageFinished
from sparsefx.train.session import Session
from tests.train import tiny_run

RECIPE = """
name: memory
data: {max_length: TOKENS, batch_size: BATCH, eval_batch_size: BATCH}
stages:
- name: dense
  pipeline: decompose-attention
  training: {steps: 3, freeze: [embeddings]}
- name: sparse
  teacher: dense
  pipeline:
  - set-dropout
  - magnitude-prune{sparsity=0.9,end=2,frequency=1}
  - distill{logits=0.05,hidden=1,temperature=1.0}
  training: {steps: 4, label_weight: 0, freeze: [embeddings]}
  after: strip-distillation
- name: int8
  teacher: dense
  pipeline:
  - pattern-lock
  - quantize-prepare{weights='channel',freeze=50%}
  - distill{logits=0.05,hidden=1,temperature=1.0}
  training: {steps: 3, label_weight: 0, freeze: [embeddings]}
  after:
  - strip-distillation
  - fold-masks
  - quantize-convert
  - quantize-embeddings
  - simplify{inference=True}
"""
EVERY = 0.01  # seconds between two looks


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: anonymous, and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    anonymous, mapped = (int(found[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    return anonymous, mapped


class Peak:
    """Looks how much memory is taken, and prints the most since it last did."""

    def __init__(self) -> None:
        self._most = resident()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, resident(), key=sum)
            time.sleep(EVERY)

    def told(self, what: str) -> None:
        """Print and begin anew."""
        (anonymous, mapped), self._most = self._most, resident()
        total = (anonymous + mapped) / 1e9
        print(
            f"{what:10s} {total:5.2f} GB, of which {mapped / 1e9:.2f} of mapped files", flush=True
        )

    def __call__(self, event: Event) -> None:
        """Print at the end of each stage."""
        if isinstance(event, StageFinished):
            self.told(event.result.name)


def long_texts(batch: int) -> SessionData:
    """Labelled texts with at least as many tokens as a run takes."""

    def longer(examples: Examples) -> Examples:
        return replace(examples, texts=tuple(f"{text} " * 256 for text in examples.texts))

    given = tiny_run.data(4 * batch)
    splits = {name: longer(examples) for name, examples in given.task.splits.items()}
    return replace(given, task=replace(given.task, splits=splits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--target", default="onnxruntime")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"BATCH": options.batch, "TOKENS": options.tokens}
    text = RECIPE
    for name, size in sizes.items():
        text = text.replace(name, str(size))
    recipe, data = Recipe.parse(text), long_texts(options.batch)
    config = BertConfig(vocab_size=options.vocabulary, num_hidden_layers=options.layers)
    model: nn.Module = BertForSequenceClassification(config)
    model.eval()
    print(f"weights {sum(p.numel() for p in model.parameters()) * 4 / 1e9:.2f} GB")
    peak = Peak()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        Session(recipe, model, data, folder, listeners=[peak]).run()
        train_and_report(recipe, model, data, folder, title="memory", target=options.target)
    peak.told("export")


if __name__ == "__main__":
    main()
