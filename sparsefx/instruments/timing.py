"""Timing side by side: callables take turns, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefx.program import Program

__all__ = ["Latency", "machine", "random_batch", "time_in_turns"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: median, and the quickest and slowest of the runs."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def time_in_turns(
    functions: Mapping[str, Callable[..., object]],
    batch: Mapping[str, Tensor],
    *,
    runs: int = 15,
    warmup: int = 2,
) -> dict[str, Latency]:
    """Time each function on one batch, in turns, after ``warmup`` rounds that do not count."""
    figures: dict[str, list[float]] = {name: [] for name in functions}
    with torch.no_grad():
        for turn in range(runs + warmup):
            for name, function in functions.items():
                start = time.perf_counter()
                function(**batch)
                if turn >= warmup:
                    figures[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: Latency(statistics.median(times), min(times), max(times), runs)
        for name, times in figures.items()
    }


def random_batch(program: Program, batch: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of the given size, or of the Program's own: random tokens, masks of ones."""
    vocabulary = int(program.config.get("vocab_size", 100))
    found = program.signature.example(program.signature.sizes(batch, tokens))
    if (ids := found.get("input_ids")) is not None:
        found["input_ids"] = torch.randint_like(ids, vocabulary // 10, vocabulary)
    return found


def machine() -> str:
    """Return one line that names the processor, for figures to stand beside."""
    info = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = f"{names[0]}, {len(names)} cores" if names else model
    threads = torch.get_num_threads()
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{model}, torch {torch.__version__}, {count}"
