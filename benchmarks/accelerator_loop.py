"""Cycles of a lock-step array by the way in which a real checkpoint is pruned.

Run: python -m benchmarks.accelerator_loop

Prunes the encoder of all-MiniLM-L6-v2 to one sparsity, by magnitude and in equal banks, permutes
rows, and times the products on the preset lock-step-32. Prints cycles at equal sparsity.
"""

from __future__ import annotations

import torch

from sparsefx.backends.accelerator.engines.base import Gemm
from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.huggingface import capture_pretrained
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.train.data.assets import minilm_folder

TOKENS = 128


def cycles(program: Program) -> tuple[int, float]:
    """Engine cycles of the encoder's linears for 128 tokens, and the share of zero weights."""
    engine = Machine(load_architecture("lock-step-32")).engine
    total = zeros = count = 0
    for layer in program.facts(EncoderStructure).layers:
        for site in layer.linears:
            mask = (program.tensor(site.weight) != 0).numpy()
            rows, columns = mask.shape
            gemm = Gemm(TOKENS, rows, columns, mask)
            total += engine.run(gemm).cycles
            zeros, count = zeros + int(mask.size - mask.sum()), count + mask.size
    return total, zeros / count


def main() -> None:
    torch.set_num_threads(1)
    dense = capture_pretrained(str(minilm_folder()))
    for sparsity in (0.9, 0.95):
        magnitude = f"magnitude-prune{{sparsity={sparsity}}},fold-masks"
        ways = {
            "magnitude": magnitude,
            "magnitude, permuted": f"{magnitude},permute-rows",
            "balanced": f"balance-banks{{sparsity={sparsity}}},fold-masks",
        }
        first = 0
        for name, spec in ways.items():
            taken, share = cycles(Pipeline.parse(spec).run(dense))
            first = first or taken
            print(f"{name:22} {share:.2%} zeros  {taken:12,} cycles  {first / taken:.2f}x")


if __name__ == "__main__":
    main()
