"""Worker threads that stay inside generated code, and the call that sets them to work."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.driver import CLOSED, CONTEXT_WORDS, driver_text
from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.runtime.apart import Apart
from sparsefx.backends.cpu.runtime.turn import Turn

__all__ = ["MOST_PARTS", "Pool", "shared_pool"]

MOST_PARTS = 64
"""Bits of the word in which threads claim the parts of a step."""

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Pool:
    """Threads for one process; calls from several Python threads take turns.

    Args:
        engine: Compiles the driver.
        threads: Threads that work on a call, the caller's among them.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self.threads = threads
        self._turn = Turn()
        text = driver_text(engine.isa)
        self._dispatch, self._worker, self._leave = (
            _ENTRY(engine.address(name, text)) for name in ("dispatch", "worker", "leave")
        )
        self._context: NDArray[np.int64] = np.zeros(0, np.int64)
        self._process = -1
        self._apart = Apart(())

    def run(
        self,
        steps: NDArray[np.int64],
        jobs: NDArray[np.int64],
        memories: NDArray[np.int64] | None = None,
        threads: int = 0,
    ) -> None:
        """Run steps; whichever thread is free takes the next part, or the next job.

        Args:
            steps: Pointers to steps.
            jobs: [jobs, words]: parts of every step, at most MOST_PARTS; with `memories`
                independent jobs of one part each.
            memories: Pointers [threads, MEMORIES] that a thread enters into the jobs it takes.
            threads: How many of the threads work; 0 for all.
        """
        with self._turn:
            self._ensure_workers()
            pointers = jobs.ctypes.data + jobs.strides[0] * np.arange(len(jobs))
            context = self._context
            context[CONTEXT_WORDS["steps"]] = steps.ctypes.data
            context[CONTEXT_WORDS["step_count"]] = len(steps)
            context[CONTEXT_WORDS["jobs"]] = pointers.ctypes.data
            context[CONTEXT_WORDS["job_count"]] = len(jobs)
            context[CONTEXT_WORDS["shared"]] = int(memories is None)
            context[CONTEXT_WORDS["memories"]] = 0 if memories is None else memories.ctypes.data
            claims = np.zeros(len(steps), np.int64)
            context[CONTEXT_WORDS["claims"]] = claims.ctypes.data
            context[CONTEXT_WORDS["threads"]] = self.threads
            if (threads or self.threads) > 1:
                self._apart.keep()
            self._dispatch(context.ctypes.data, threads or self.threads)

    def _ensure_workers(self) -> None:
        """Start the workers, again after a fork: a child process has only the forking thread."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        context = np.zeros(48, np.int64)
        context[CONTEXT_WORDS["gate"]] = CLOSED
        self._context = context
        workers = [
            threading.Thread(
                target=_work,
                args=(self._worker, context, number),
                name=f"sparsefx-cpu-{number}",
                daemon=True,
            )
            for number in range(1, self.threads)
        ]
        for worker in workers:
            worker.start()
        self._apart = Apart(workers)
        weakref.finalize(self, self._leave, context.ctypes.data, 0)


def _work(enter: Callable[[int, int], None], context: NDArray[np.int64], number: int) -> None:
    """Body of a worker thread; holds the context alive for as long as it runs."""
    enter(context.ctypes.data, number)


_SHARED: dict[tuple[str, int], Pool] = {}
_SHARING = Turn()


def shared_pool(engine: Engine, threads: int) -> Pool:
    """The pool of this process with that many threads; models share it."""
    with _SHARING:
        key = (engine.isa.name, threads)
        if key not in _SHARED:
            _SHARED[key] = Pool(engine, threads)
        return _SHARED[key]
