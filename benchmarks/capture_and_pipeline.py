"""How long capture and the passes take: BERT-base as a whole, and by number of layers.

Run it from a checkout with ``python benchmarks/capture_and_pipeline.py``. The weights are random:
none of the times depends on their values. Goals: capture and full pipeline of BERT-base under 8 s;
the time of each pass grows linearly from 12 to 96 layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from sparsefx import Pipeline, Program, capture
from sparsefx.instruments import Timing
from sparsefx.instruments.timing import machine
from sparsefx.passes.quantize.calibrate import calibrate

GOAL_SECONDS = 8.0
INSTRUMENT = (
    "simplify",
    "decompose-attention",
    "distill{hidden=1.0,scores=1.0}",
    "magnitude-prune{sparsity=0.9,end=1000,frequency=10}",
    "pattern-lock",
    "quantize-prepare",
)
FINISH = ("strip-distillation", "fold-masks", "quantize-convert", "simplify{inference=True}")


def model(layers: int, *, small: bool) -> nn.Module:
    """BERT-base with another number of layers; ``small`` keeps the graph, not the sizes."""
    config = BertConfig(num_hidden_layers=layers)
    if small:
        config.hidden_size, config.num_attention_heads = 64, 4
        config.intermediate_size, config.vocab_size = 128, 1000
    made: nn.Module = BertForSequenceClassification(config)
    return made.eval()


def batch() -> dict[str, Tensor]:
    """Two short sequences."""
    ids = torch.randint(5, 900, (2, 8))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def timed(layers: int, *, small: bool) -> dict[str, float]:
    """Return the seconds of capture and of each pass, in order."""
    student, teacher = model(layers, small=small), model(layers, small=small)
    start = time.perf_counter()
    program = capture(student, batch())
    seconds = {"capture": time.perf_counter() - start}
    programs = {"teacher": Pipeline.parse("decompose-attention").run(capture(teacher, batch()))}
    program = run(program, INSTRUMENT, programs, seconds)
    calibrate(program, [batch()])
    run(program, FINISH, {}, seconds)
    return seconds


def run(
    program: Program,
    passes: Sequence[str],
    programs: dict[str, Program],
    seconds: dict[str, float],
) -> Program:
    """Run passes and add their seconds; what the pipeline itself takes is ``check``."""
    timing = Timing()
    start = time.perf_counter()
    pipeline = Pipeline.parse(",".join(passes))
    result = pipeline.run(program, programs=programs, instruments=[timing], in_place=True)
    total = time.perf_counter() - start
    seconds.update(timing.seconds)
    overhead = total - sum(spent for _, spent in timing.seconds)
    seconds["check"] = seconds.get("check", 0.0) + overhead
    return result


def print_base(repeats: int) -> None:
    """Print BERT-base: the median of each row over the repeats."""
    runs = [timed(12, small=False) for _ in range(repeats)]
    print(f"BERT-base, 12 layers, full size: seconds, median of {repeats} (least - most)")
    for name in runs[0]:
        print(f"  {name:<56}{row([one[name] for one in runs])}")
    totals = [sum(one.values()) for one in runs]
    verdict = "reached" if sorted(totals)[len(totals) // 2] < GOAL_SECONDS else "missed"
    print(f"  {'capture and full pipeline':<56}{row(totals)}")
    print(f"  goal: under {GOAL_SECONDS:g} s: {verdict}")


def row(values: Sequence[float]) -> str:
    """Format median and range."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:7.2f}  ({ordered[0]:.2f} - {ordered[-1]:.2f})"


def print_growth(layers: Sequence[int], repeats: int) -> None:
    """Print seconds by layers; the last column is growth over linear growth (1.00 is linear)."""
    runs = {count: [timed(count, small=True) for _ in range(repeats)] for count in layers}
    best = {
        count: {name: min(one[name] for one in found) for name in found[0]}
        for count, found in runs.items()
    }
    first, last = layers[0], layers[-1]
    print(f"\nBERT of hidden size 64, by layers: seconds, least of {repeats}")
    print(f"  {'':<56}" + "".join(f"{count:>8}" for count in layers) + "   growth / linear")
    for name in best[first]:
        figures = "".join(f"{best[count][name]:8.3f}" for count in layers)
        growth = best[last][name] / best[first][name] / (last / first)
        print(f"  {name:<56}{figures}   {growth:.2f}")


def main() -> None:
    """Print the machine and both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48, 96])
    options = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    print_base(options.repeats)
    print_growth(options.layers, options.repeats)


if __name__ == "__main__":
    main()
