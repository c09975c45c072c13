"""A training step of the instrumented graph beside a hand-written loop with the same mathematics.

Run it from a checkout: ``python benchmarks/training_step.py``. Student and teacher are BERTs of
MiniLM's size (hidden 384, 6 layers, 12 heads) with random weights. Three settings are timed:

    distillation            logits (T = 2), hidden states, embedding output, attention scores
    + masks                 90 % of the encoder weights masked, zeroed again after every step
    + fake quantization     int8 weights, uint8 activations with moving-average observers

The peer is what one writes by hand in plain PyTorch: its own forward, ``torch.fake_quantize...``,
``torch.aminmax``, ``torch._foreach_mul_``. First, without dropout, both must give the same loss for
some steps; then they take turns, with dropout 0.1. Printed is CPU time on one thread (wall-clock
suffers from whatever else runs), its median and quickest and slowest step, and the ratio of the
medians, whose goal is at most 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from sparsefx import Pipeline, Program, capture
from sparsefx.instruments.timing import machine

TERMS = "logits=1.0,hidden=1.0,embedding=1.0,scores=1.0,mask_padding=False"
SETTINGS = {
    "distillation": "",
    "+ masks": "magnitude-prune{sparsity=0.9},pattern-lock",
    "+ fake quantization": "magnitude-prune{sparsity=0.9},pattern-lock,quantize-prepare",
}
GOAL = 1.10
Batch = dict[str, Tensor]


def bert(seed: int, dropout: float) -> Any:
    """A BERT classifier of MiniLM's size."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config._attn_implementation = "eager"
    model: Any = BertForSequenceClassification(config)
    return model.eval()


def make_batch(sentences: int, tokens: int) -> Batch:
    """Random tokens; the last quarter of the last sentence is padding."""
    ids = torch.randint(
        1000, 30000, (sentences, tokens), generator=torch.Generator().manual_seed(3)
    )
    mask = torch.ones_like(ids)
    mask[-1, -tokens // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


# -- the hand-written peer -------------------------------------------------------------------------


class Observed:
    """A uint8 fake quantizer with a moving-average observer."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Observe and fake-quantize."""
        low, high = torch.aminmax(x.detach())
        if self.low is not None and self.high is not None:
            low, high = torch.lerp(self.low, low, 0.01), torch.lerp(self.high, high, 0.01)
        self.low, self.high = low, high
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
        point = (-torch.round(low / scale)).clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, point, 0, 255)


class ByHand:
    """BERT's forward with masks, fake quantization and everything distillation compares."""

    def __init__(self, model: Any, masks: dict[str, Tensor], *, quantized: bool) -> None:
        self.model = model
        self.masks = masks
        self.quantized = quantized
        self.names = {module: name for name, module in model.named_modules()}
        self.observers: dict[str, Observed] = {}
        self.zero = torch.zeros((), dtype=torch.int32)

    def round(self, key: str, x: Tensor) -> Tensor:
        """Fake-quantize an activation."""
        if not self.quantized:
            return x
        return self.observers.setdefault(key, Observed())(x)

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """Apply a linear with its mask and its quantizer."""
        weight: Tensor = module.weight
        if (mask := self.masks.get(self.names[module])) is not None:
            weight = weight * mask
        if self.quantized:
            scale = weight.detach().abs().amax() / 127.5
            weight = torch.fake_quantize_per_tensor_affine(weight, scale, self.zero, -128, 127)
        return F.linear(x, weight, module.bias)

    def __call__(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return logits, hidden states and scores."""
        bert = self.model.bert
        x = bert.embeddings(batch["input_ids"], batch["token_type_ids"])
        bias = (1.0 - batch["attention_mask"][:, None, None, :].float()) * torch.finfo().min
        hidden, scores = [x], []
        for index, layer in enumerate(bert.encoder.layer):
            x, seen = self.layer(index, layer, x, bias)
            hidden.append(x)
            scores.append(seen)
        first = self.round("pooler", x[:, 0])
        pooled = torch.tanh(self.round("pooled", self.linear(bert.pooler.dense, first)))
        pooled = self.round("classifier", self.model.dropout(pooled))
        return self.linear(self.model.classifier, pooled), hidden, scores

    def layer(self, index: int, layer: Any, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's output and its scores."""
        attention = layer.attention.self
        shape = (*x.shape[:2], attention.num_attention_heads, -1)
        given = self.round(f"{index} input", x)
        q = self.round(f"{index} q", self.linear(attention.query, given))
        k = self.round(f"{index} k", self.linear(attention.key, given))
        v = self.linear(attention.value, given)
        q, k, v = (part.view(shape).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
        mixed = attention.dropout(scores.softmax(-1)) @ v
        mixed = self.round(f"{index} mixed", mixed.transpose(1, 2).reshape(x.shape))
        output = layer.attention.output
        x = output.LayerNorm(output.dropout(self.linear(output.dense, mixed)) + x)
        up = self.linear(layer.intermediate.dense, self.round(f"{index} up", x))
        up = F.gelu(self.round(f"{index} wide", up))
        down = self.linear(layer.output.dense, self.round(f"{index} down", up))
        return layer.output.LayerNorm(layer.output.dropout(down) + x), scores


def unmasked(scores: Tensor) -> Tensor:
    """Scores with the masked entries as 0."""
    return scores.masked_fill(scores <= -1e2, 0.0)


def loss_by_hand(student: ByHand, teacher: ByHand, batch: Batch) -> Tensor:
    """The loss of ``distill`` with these terms."""
    with torch.no_grad():
        their_logits, their_hidden, their_scores = teacher(batch)
    logits, hidden, scores = student(batch)
    total = 4.0 * F.kl_div(
        F.log_softmax(logits / 2, -1),
        F.log_softmax(their_logits / 2, -1),
        reduction="batchmean",
        log_target=True,
    )
    for ours, theirs in zip(hidden, their_hidden, strict=True):
        total = total + F.mse_loss(ours, theirs)
    for ours, theirs in zip(scores, their_scores, strict=True):
        total = total + F.mse_loss(unmasked(ours), unmasked(theirs))
    return total


# -- both ------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """One step of each; a step returns its loss."""

    graph: Callable[[Batch], Tensor]
    hand: Callable[[Batch], Tensor]


def make_pair(passes: str, batch: Batch, dropout: float) -> Pair:
    """Build the instrumented Program and the loop by hand from the same weights."""
    student, teacher = bert(0, dropout), bert(1, dropout)
    text = ",".join(part for part in (passes, f"distill{{{TERMS}}}") if part)
    program = Pipeline.parse(text).run(
        capture(student, batch), programs={"teacher": capture(teacher, batch)}
    )
    masks = {
        name.removesuffix(".weight_mask"): tensor
        for name, tensor in program.named_tensors().items()
        if name.endswith("_mask")
    }
    by_hand = ByHand(student.train(), masks, quantized="quantize" in passes)
    return Pair(
        graph_step(program.train()), hand_step(by_hand, ByHand(teacher, {}, quantized=False))
    )


def graph_step(program: Program) -> Callable[[Batch], Tensor]:
    """The five lines of training a Program."""
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-4)

    def step(batch: Batch) -> Tensor:
        loss = program(**batch)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        program.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def hand_step(student: ByHand, teacher: ByHand) -> Callable[[Batch], Tensor]:
    """The same by hand."""
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-4)
    modules = dict(student.model.named_modules())
    masked = [modules[name].weight for name in student.masks]

    def step(batch: Batch) -> Tensor:
        loss = loss_by_hand(student, teacher, batch)
        torch.autograd.backward(loss)
        optimizer.step()
        if masked:
            with torch.no_grad():
                torch._foreach_mul_(masked, list(student.masks.values()))
        optimizer.zero_grad()
        return loss.detach()

    return step


def check_equal(passes: str, batch: Batch) -> float:
    """Hold both to the same losses over three steps; return the largest relative difference."""
    pair = make_pair(passes, batch, dropout=0.0)
    worst = 0.0
    for _ in range(3):
        ours, theirs = float(pair.graph(batch)), float(pair.hand(batch))
        worst = max(worst, abs(ours - theirs) / theirs)
    # Fake quantization rounds; a value on the edge may fall to either side.
    limit = 1e-3 if "quantize" in passes else 1e-5
    if worst > limit:
        raise SystemExit(f"the losses differ by {worst:.1e}: the mathematics is not the same")
    return worst


def time_pair(pair: Pair, batch: Batch, steps: int) -> tuple[list[float], list[float]]:
    """Return the CPU milliseconds of each step of both, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(steps + 2):
        for step, into in zip((pair.graph, pair.hand), times, strict=True):
            start = time.process_time()
            step(batch)
            if turn >= 2:
                into.append((time.process_time() - start) * 1e3)
    return times


def main() -> None:
    """Check, time and print every setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = make_batch(options.sentences, options.tokens)
    print(f"{machine()}; {options.sentences} x {options.tokens} tokens, {options.steps} steps")
    print(f"{'setting':<20} {'graph ms':>22} {'by hand ms':>22} {'ratio':>6}  loss differs by")
    for name, passes in SETTINGS.items():
        difference = check_equal(passes, make_batch(4, 16))
        both = time_pair(make_pair(passes, batch, 0.1), batch, options.steps)
        graph, hand = (f"{statistics.median(t):.0f} ({min(t):.0f} to {max(t):.0f})" for t in both)
        ratio = statistics.median(both[0]) / statistics.median(both[1])
        verdict = "" if ratio <= GOAL else f"  over the goal of {GOAL}"
        print(f"{name:<20} {graph:>22} {hand:>22} {ratio:>6.2f}  {difference:.0e}{verdict}")


if __name__ == "__main__":
    main()
