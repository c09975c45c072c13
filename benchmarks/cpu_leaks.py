"""How much memory the cpu target keeps from call to call, over batches of several shapes.

python -m benchmarks.cpu_leaks --calls 100000
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsefx.target import Compiled

__all__ = ["grown_bytes"]

SHAPES = ((1, 16), (3, 40), (2, 7), (9, 33))


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def grown_bytes(compiled: Compiled, *, calls: int, warm: int) -> int:
    """Growth of resident memory over `calls` calls, after `warm` calls that fill caches."""
    batches = [
        {"input_ids": torch.full(shape, 5), "attention_mask": torch.ones(shape, dtype=torch.int64)}
        for shape in SHAPES
    ]
    for batch in itertools.islice(itertools.cycle(batches), warm):
        compiled(**batch)
    gc.collect()
    before = resident_bytes()
    for batch in itertools.islice(itertools.cycle(batches), calls):
        compiled(**batch)
    gc.collect()
    return resident_bytes() - before


def main() -> None:
    from sparsefx.backends.cpu.target import CpuTarget
    from tests.programs import captured

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiled = CpuTarget(threads=options.threads).compile(captured("bert-cls"))
    grown = grown_bytes(compiled, calls=options.calls, warm=1000)
    print(f"{options.calls} calls, {options.threads} threads: {grown / 1e3:.1f} kB kept")


if __name__ == "__main__":
    main()
