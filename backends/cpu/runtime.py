"""Runs a plan: packs the real tokens of a batch, cuts them into slabs, sets the threads to work.

    batch [B, S] with padding          slabs of panels of 64 tokens
    a a a a a . . .                    | aaaaa........... bbb.............|  (sequences start at
    b b b . . . . .        ----->      | cccccccc........ ...............|   multiples of 16)
    c c c c c c c c

With many tokens each thread takes slabs of its own through the whole plan (no waiting); with few,
all threads share one slab and divide the rows of every layer by non-zeros.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.engine import Engine
from sparsefx.backends.cpu.frame import JOB_FIELDS
from sparsefx.backends.cpu.kernels.attention import CHUNK
from sparsefx.backends.cpu.panel import widest
from sparsefx.backends.cpu.plan import Arena, Plan, pack_arena, word_bits
from sparsefx.backends.cpu.pool import Pool

__all__ = ["Runtime", "aligned"]

_SLAB_TOKENS = 256
_LINE = 64


def aligned(size: int) -> NDArray[np.uint8]:
    """Zeroed bytes that start at a cache line, backed by huge pages where they are large."""
    if size >= 1 << 21:
        memory = mmap.mmap(-1, size + _LINE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(memory, np.uint8)
    else:
        raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size]


@dataclass(frozen=True)
class _Slab:
    """Sequences that go through the plan together."""

    rows: NDArray[np.intp]  # rows of the batch
    starts: NDArray[np.intp]  # first token of each
    lengths: NDArray[np.intp]
    origin: NDArray[np.int32]  # per token: its place in the flat batch, -1 for filling
    width: int


def _width(tokens: int, widest: int) -> int:
    """The narrowest panel that holds all tokens, the widest if none does."""
    return next((w for w in (16, 32) if tokens <= w), widest)


class Runtime:
    """A plan made ready for one instruction set.

    Args:
        plan: What to run.
        engine: Compiles and keeps the kernels.
        pool: The threads.
        longest: Longest sequence that the model takes.
    """

    def __init__(self, plan: Plan, engine: Engine, pool: Pool) -> None:
        self.plan = plan
        self.arena: Arena = pack_arena(plan.steps)
        self._engine = engine
        self._pool = pool
        self._widest = widest(engine.isa)
        self.isa = engine.isa
        self._steps: dict[tuple[int, int], tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}
        self._memory: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * (3 * pool.threads)

    def run(
        self,
        mask: NDArray[np.bool_],
        indices: Mapping[str, NDArray[np.int32]],
    ) -> dict[str, NDArray[np.float32]]:
        """Run a batch.

        Args:
            mask: bool [batch, sequence], False for padding.
            indices: int32 [batch, sequence] for each name in `plan.indices`.

        Returns:
            For each result an fp32 array [batch, sequence, channels] (zeros at padding) or
            [batch, channels].
        """
        batch, sequence = mask.shape
        shapes = {0: (batch, sequence), 1: (batch,)}
        results = {
            name: np.zeros((*shapes[space], channels), np.float32)
            for name, (_, channels, space) in self.plan.results.items()
        }
        slabs = self._slabs(mask)
        threads = self._pool.threads
        while slabs:
            if len(slabs) == 1:
                self._together(slabs.pop(), mask.shape, indices, results)
                continue
            width = slabs[-1].width
            chosen = [slabs.pop()]
            while slabs and len(chosen) < threads and slabs[-1].width == width:
                chosen.append(slabs.pop())
            self._apart(chosen, mask.shape, indices, results)
        return results

    def _slabs(self, mask: NDArray[np.bool_]) -> list[_Slab]:
        """Cut the batch; one slab for all if that keeps every thread busier."""
        lengths = mask.sum(1)
        space = -(-lengths // CHUNK) * CHUNK
        threads = self._pool.threads
        total = int(space.sum())
        alone = len(lengths) < threads or total <= _SLAB_TOKENS // 2
        if alone:
            return [_make_slab(mask, np.arange(len(lengths)), lengths, space, self._widest)]
        limit = max(_SLAB_TOKENS // 2, min(_SLAB_TOKENS, -(-total // threads)))
        groups: list[list[int]] = [[]]
        used = 0
        for row in np.argsort(-lengths, kind="stable"):
            if used and used + space[row] > limit:
                groups.append([])
                used = 0
            groups[-1].append(int(row))
            used += int(space[row])
        return [_make_slab(mask, np.array(g), lengths, space, self._widest) for g in groups]

    def _together(self, slab: _Slab, shape: tuple[int, ...], indices: Any, results: Any) -> None:
        """One slab; its job has a part for each thread, which any thread may take."""
        threads = self._pool.threads
        job, keep = self._job(slab, 0, indices, results)
        jobs = []
        for thread in range(threads):
            own = job.copy()
            own[JOB_FIELDS.index("thread")] = thread
            own[JOB_FIELDS.index("team")] = threads
            own[JOB_FIELDS.index("scratch")] = self._scratch(thread, slab).ctypes.data
            jobs.append(own)
        self._pool.run(self._compiled(slab), jobs)
        del keep

    def _apart(
        self, slabs: list[_Slab], shape: tuple[int, ...], indices: Any, results: Any
    ) -> None:
        """As many slabs as threads; whoever takes one runs all its steps."""
        jobs, keeps = [], []
        for number, slab in enumerate(slabs):
            job, keep = self._job(slab, number, indices, results)
            job[JOB_FIELDS.index("scratch")] = self._scratch(number, slab).ctypes.data
            jobs.append(job)
            keeps.append(keep)
        self._pool.run(self._compiled(slabs[0]), jobs)
        del keeps

    def _job(
        self, slab: _Slab, number: int, indices: Any, results: Any
    ) -> tuple[NDArray[np.int64], list[Any]]:
        """The job of one slab as a team of one, and the arrays it points to."""
        tokens, count = len(slab.origin), len(slab.rows)
        width_1 = _width(count, self._widest)
        tokens_1 = -(-count // width_1) * width_1
        table = np.zeros((count, 4), np.int32)
        table[:, 0], table[:, 1] = slab.starts, slab.lengths
        table[:, 2], table[:, 3] = slab.rows, np.arange(count)
        origin_1 = np.full(tokens_1, -1, np.int32)
        origin_1[:count] = slab.rows
        arrays: list[NDArray[Any]] = [slab.origin, origin_1]
        for name in self.plan.indices:
            flat = indices[name].reshape(-1)
            arrays.append(np.ascontiguousarray(np.where(slab.origin < 0, 0, flat[slab.origin])))
        arrays += [results[name] for name in self.plan.results]
        pointers = np.array([a.ctypes.data for a in arrays], np.int64)
        memory = self._grown(3 * number, self.arena.token_bytes[0] * tokens)
        memory_1 = self._grown(3 * number + 1, self.arena.token_bytes[1] * tokens_1)
        values = {
            "team": 1,
            "sequences": table.ctypes.data,
            "sequence_count": count,
            "tables": pointers.ctypes.data,
            "arena": memory.ctypes.data,
            "tokens": tokens,
            "panels": tokens // slab.width,
            "arena_1": memory_1.ctypes.data,
            "tokens_1": tokens_1,
            "panels_1": tokens_1 // width_1,
        }
        job = np.array([values.get(name, 0) for name in JOB_FIELDS], np.int64)
        return job, [arrays, pointers, table]

    def _scratch(self, thread: int, slab: _Slab) -> NDArray[np.uint8]:
        longest = int(slab.lengths.max())
        size = max(step.kernel.scratch(step.words, longest) for step in self.plan.steps)
        return self._grown(3 * thread + 2, size)

    def _grown(self, slot: int, size: int) -> NDArray[np.uint8]:
        if len(self._memory[slot]) < size:
            self._memory[slot] = aligned(size)
        return self._memory[slot]

    def _compiled(self, slab: _Slab) -> NDArray[np.int64]:
        """Pointers to the steps for the panel widths of a slab."""
        widths = (slab.width, _width(len(slab.rows), self._widest))
        if widths not in self._steps:
            self._steps[widths] = self._compile(widths)
        return self._steps[widths][0]

    def _compile(
        self, widths: tuple[int, int]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        encoded = []
        for step in self.plan.steps:
            space = int(step.words.get("space", 0))  # type: ignore[arg-type]  # always an int
            width = widths[space]
            function = step.kernel.emit(self._engine.isa, width)
            address = self._engine.address(function.name, function.text)
            words = {**step.words, "width_1": widths[1]}
            bits = [word_bits(words.get(name, 0), self.arena) for name in step.kernel.fields]
            encoded.append(np.array([address, *bits], np.int64))
        return np.array([step.ctypes.data for step in encoded], np.int64), encoded


def _make_slab(
    mask: NDArray[np.bool_],
    rows: NDArray[np.intp],
    lengths: NDArray[np.intp],
    space: NDArray[np.intp],
    widest: int,
) -> _Slab:
    taken = space[rows]
    starts = np.concatenate([[0], np.cumsum(taken)])
    width = _width(int(starts[-1]), widest)
    total = max(width, -(-int(starts[-1]) // width) * width)
    origin = np.full(total, -1, np.int32)
    sequence = mask.shape[1]
    for row, start in zip(rows, starts[:-1], strict=True):
        places = np.flatnonzero(mask[row])
        origin[start : start + len(places)] = row * sequence + places
    return _Slab(rows, starts[:-1], lengths[rows], origin, width)
