"""Plans timed in turns: what else the machine does then meets all of them alike.

A run is a fraction of a millisecond, shorter than a slice of the scheduler, and the shortest of
many counts: on a busy machine too some of them are undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from sparsefx.backends.cpu.runtime.runtime import Runtime

__all__ = ["shortest"]

_LEAST_RUNS, _MOST_RUNS = 15, 150


def shortest(runtimes: Sequence[Runtime], tokens: int, budget: float) -> list[float]:
    """Seconds of each runtime's shortest run on one sequence.

    Args:
        runtimes: Plans that read no index.
        tokens: Tokens of the sequence, without padding.
        budget: Seconds after which no further round is begun, if there were 15 of at most 150.
    """
    mask = np.ones((1, tokens), np.bool_)
    for runtime in runtimes:  # compiles, and touches the memory
        runtime.run(mask, {})
    found = [float("inf")] * len(runtimes)
    end = time.perf_counter() + budget
    for turn in range(_MOST_RUNS):
        if turn >= _LEAST_RUNS and time.perf_counter() > end:
            break
        for place, runtime in enumerate(runtimes):
            begin = time.perf_counter()
            runtime.run(mask, {})
            found[place] = min(found[place], time.perf_counter() - begin)
    return found
