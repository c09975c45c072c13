"""Keeps workers off the core of the thread that calls.

A worker that sleeps is often woken on the core of the thread that wakes it, and waits there behind
it for milliseconds while another core idles: of calls of BERT-base after a pause, every other one
took as long as on one thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from threading import Thread

__all__ = ["Apart"]


class Apart:
    """The core that workers were last kept off; nothing happens where the system has no such calls.

    Args:
        workers: Threads that have started.
    """

    def __init__(self, workers: Sequence[Thread]) -> None:
        known = hasattr(os, "sched_setaffinity")
        self._core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if known else None
        self._workers = workers
        self._left_out = -1

    def keep(self) -> None:
        """Let workers run on any core that the calling thread may use but the one it is on."""
        if self._core is None:
            return
        core = self._core()
        if core == self._left_out:
            return
        self._left_out = core
        others = os.sched_getaffinity(0) - {core}
        if not others:
            return
        try:
            for worker in self._workers:
                os.sched_setaffinity(worker.native_id or 0, others)
        except OSError:  # not allowed here, or a core was taken away: the system decides alone
            self._core = None
