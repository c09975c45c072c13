"""A session small enough for tests: a tiny BERT, 60 short texts, a tokenizer of letters.

Run as a program, it trains in the folder it is given; the tests kill it.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from sparsefx.frontend.capture import capture
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.evaluation import SessionData
from sparsefx.train.events import Event, StepDone
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session

LETTERS = "abcdefgh"

DENSE = """
name: tiny
seed: 5
data: {max_length: 16, batch_size: 8}
stages:
- name: dense
  training:
    epochs: 2
    optimizer: {learning_rate: 1e-3}
    precision: fp32
    freeze: [embeddings]
"""

TWO = """
name: two
data: {max_length: 16, batch_size: 8}
stages:
- {name: dense, training: {steps: 2, precision: fp32}}
- name: student
  teacher: TEACHER
  pipeline: DISTILL
  training: {steps: 4, precision: fp32, label_weight: 0}
  after: strip-distillation
"""


def tokenizer() -> Any:
    """A tokenizer with one token for each letter."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: place for place, token in enumerate([*special, *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def texts(count: int, seed: int) -> tuple[str, ...]:
    """Random words of one letter, 2 to 10 of them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        length = int(torch.randint(2, 11, (), generator=generator))
        letters = torch.randint(len(LETTERS), (length,), generator=generator).tolist()
        drawn.append(" ".join(LETTERS[letter] for letter in letters))
    return tuple(drawn)


def data(count: int = 60, unlabelled: int = 0) -> SessionData:
    """Texts, labelled by whether their first letter is one of the first half."""

    def examples(number: int, seed: int) -> Examples:
        drawn = texts(number, seed)
        return Examples("drawn", drawn, labels=tuple(int(text[0] in "abcd") for text in drawn))

    task = Task(
        "first letter",
        "classification",
        ("late", "early"),
        "accuracy",
        {"train": examples(count, 0), "test": examples(40, 1)},
    )
    extra = Examples("more", texts(unlabelled, 2)) if unlabelled else None
    return SessionData(task, tokenizer(), extra)


def model(outputs: int = 2, form: Any = BertForSequenceClassification, **changed: int) -> nn.Module:
    """A BERT of two layers of width 32."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 4 + len(LETTERS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "num_labels": outputs,
        **changed,
    }
    found: nn.Module = form(BertConfig(**sizes))
    return found.eval()


@functools.cache
def program() -> Program:
    """The same, captured; a session does not change it."""
    return capture(model(), example_inputs(data()))


def example_inputs(given: SessionData) -> dict[str, Tensor]:
    """Two tokenized texts."""
    batch = encode(given.tokenizer, given.task.split("test"), 16).collate([0, 1])
    del batch["labels"]
    return batch


def interrupt_at(step: int, stage: str = "") -> Callable[[Event], None]:
    """A listener that sends the process SIGINT after a step, of one stage or of any."""

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step and stage in ("", event.stage):
            signal.raise_signal(signal.SIGINT)

    return listen


def two_stages(distill: str = "distill", teacher: str = "dense") -> Recipe:
    """A dense stage, then one that is taught."""
    return Recipe.parse(TWO.replace("DISTILL", f'"{distill}"').replace("TEACHER", teacher))


def run(recipe: Recipe, folder: Path, **options: Any) -> RunResult:
    """Run a recipe on the tiny model and data, or on others."""
    given = {"model": program(), "data": data(), "device": "cpu", **options}
    return Session(recipe, folder=folder, **given).run()


def main() -> None:
    """Train: ``tiny_run.py FOLDER RECIPE.yaml``, with a checkpoint after every step."""
    torch.set_num_threads(1)
    recipe = Recipe.parse(Path(sys.argv[2]).read_text(encoding="utf-8"))
    given = data(unlabelled=20)
    Session(recipe, program(), given, sys.argv[1], device="cpu", checkpoint_seconds=0.0).run()


if __name__ == "__main__":
    main()
