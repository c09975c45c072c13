"""What masks cost in training: a pruned Program against a loop with masks written by hand.

Run it from a checkout with ``python benchmarks/masked_step.py``. Both train the same encoder with
the same AdamW on the same batches; by hand the weights are multiplied by their masks through
``torch.nn.utils.parametrize`` in the model's own forward, and zeroed after each step, as SparseBERT
does. They take turns, so that a drifting machine drifts for both. Goal: at most 1.10 times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertForSequenceClassification

from sparsefx import Pipeline, Program, capture
from sparsefx.instruments.timing import machine
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.passes.prune.patterns import Unstructured, mask_for

GOAL = 1.10
SPARSITY = 0.9


class Masked(nn.Module):
    """The parametrization ``weight * mask``."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight."""
        return weight * self.mask


def by_hand(model: BertForSequenceClassification) -> Callable[[dict[str, Tensor]], None]:
    """Return a training step of the eager model with masks on its encoder linears."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for linear in model.bert.encoder.modules():
        if isinstance(linear, nn.Linear):
            weight = linear.weight
            mask = mask_for(weight.detach().abs(), SPARSITY, Unstructured()).float()
            parametrize.register_parametrization(linear, "weight", Masked(mask))
            pairs.append((weight, mask))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: dict[str, Tensor]) -> None:
        logits = model(**batch).logits
        backward(logits, optimizer)
        with torch.no_grad():
            torch._foreach_mul_([weight for weight, _ in pairs], [mask for _, mask in pairs])

    return step


def by_program(program: Program) -> Callable[[dict[str, Tensor]], None]:
    """Return a training step of the pruned Program."""
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-5)

    def step(batch: dict[str, Tensor]) -> None:
        logits = program(**batch)["logits"]
        backward(logits, optimizer)
        program.step()

    return step


def backward(logits: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimizer step on a loss of the logits."""
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(logits, logits.argmax(-1)))
    optimizer.step()


def print_updates(program: Program, item: MagnitudePrune, repeats: int) -> None:
    """Print the seconds of choosing all masks anew, and of a step that chooses none."""
    for label, step in (
        ("masks chosen anew", item.begin),
        ("weights zeroed alone", item.begin + 1),
    ):
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            item.after_step(program, step)
            seconds.append(time.perf_counter() - start)
        figures = f"{statistics.median(seconds):8.3f} s ({min(seconds):.3f} at best)"
        print(f"  after_step, {label:<22}{figures}")


def print_steps(
    steps: dict[str, Callable[[dict[str, Tensor]], None]], batch: dict[str, Tensor], repeats: int
) -> None:
    """Print the seconds of a step, by the clock and of processor time (on a busy machine)."""
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in steps} for clock in clocks
    }
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = {clock: now() for clock, now in clocks.items()}
            step(batch)
            for clock, now in clocks.items():
                if turn:
                    seconds[clock][name].append(now() - start[clock])
    for clock, found in seconds.items():
        for name, values in found.items():
            figures = f"{statistics.median(values):8.3f} s a step ({min(values):.3f} at best)"
            print(f"  {clock}, {name:<20}{figures}")
        ratios = [b / a for a, b in zip(found["by hand"], found["Program"], strict=True)]
        ratio = statistics.median(ratios)
        verdict = "reached" if ratio <= GOAL else "missed"
        print(f"  ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); {GOAL}: {verdict}")


def main() -> None:
    """Print the machine, the steps in turns, and the mask updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).train()
    ids = torch.randint(1000, 30000, (options.batch, options.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    item = MagnitudePrune(SPARSITY)
    program = Pipeline((item,)).run(capture(model, batch)).train()
    steps = {"by hand": by_hand(model), "Program": by_program(program)}
    print(machine())
    size = f"{options.batch}x{options.tokens} tokens"
    print(f"BERT, {options.layers} layers, {size}, {SPARSITY:.0%} zeros")
    print_steps(steps, batch, options.repeats)
    print_updates(program, item, options.repeats)


if __name__ == "__main__":
    main()
