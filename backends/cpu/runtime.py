"""Runs a plan: packs the real tokens of a batch, cuts them into slabs, sets the threads to work.

    batch [B, S] with padding          slabs of panels of 64 tokens
    a a a a a . . .                    | aaaaa........... bbb.............|  (sequences start at
    b b b . . . . .        ----->      | cccccccc........ ...............|   multiples of 16)
    c c c c c c c c

Where attention asks for the distance of tokens, padding between real tokens keeps its place and is
hidden as a key; elsewhere, as at both ends, it is left out.

With many tokens each thread takes slabs of its own through the whole plan (no waiting); with few,
all threads share one slab and divide the rows of every layer by non-zeros.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.engine import Engine
from sparsefx.backends.cpu.frame import JOB_FIELDS
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.attention import CHUNK
from sparsefx.backends.cpu.kernels.distances import EDGE, HIDDEN
from sparsefx.backends.cpu.memory import aligned
from sparsefx.backends.cpu.panel import widest
from sparsefx.backends.cpu.plan import Arena, Plan, Step, pack_arena, word_bits
from sparsefx.backends.cpu.pool import MOST_PARTS, Pool
from sparsefx.backends.cpu.teams import Teams
from sparsefx.backends.cpu.weights import splits

__all__ = ["Runtime"]

_SLAB_TOKENS = 256
_PARTS = 2
"""Parts of a step for each thread that shares it: who is held up takes fewer of them."""


@dataclass(frozen=True)
class _Slab:
    """Sequences that go through the plan together."""

    rows: NDArray[np.intp]  # rows of the batch
    starts: NDArray[np.intp]  # first token of each
    lengths: NDArray[np.intp]
    origin: NDArray[np.int32]  # per token: its place in the flat batch, -1 for filling and padding
    width: int


def _width(tokens: int, widest: int) -> int:
    """The narrowest panel that holds all tokens, the widest if none does."""
    return next((w for w in (16, 32) if tokens <= w), widest)


def _padded(tokens: int, widest: int) -> int:
    """Tokens rounded up to whole panels."""
    width = _width(tokens, widest)
    return -(-tokens // width) * width


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
        self.engine = engine
        self._pool = pool
        self._widest = widest(engine.isa)
        self._by_distance = any("distances" in step.kernel.fields for step in plan.steps)
        self._steps: dict[tuple[int, int], tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}
        self._memory: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._scratches: dict[int, int] = {}  # bytes, by the longest sequence
        self._teams: dict[tuple[int, int, int], Teams] = {}
        self._divided: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._parts = 1 if pool.threads == 1 else min(MOST_PARTS, pool.threads * _PARTS)

    @property
    def isa(self) -> Isa:
        """The instruction set."""
        return self.engine.isa

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
        # Slabs of one shape of code go together: code differs by panel width.
        groups: dict[int, list[_Slab]] = {}
        for slab in self._slabs(mask):
            groups.setdefault(id(self._compiled(slab)), []).append(slab)
        for slabs in groups.values():
            if len(slabs) == 1:
                self._together(slabs[0], indices, results)
            else:
                self._apart(slabs, indices, results)
        return results

    def time_steps(
        self, mask: NDArray[np.bool_], indices: Mapping[str, NDArray[np.int32]], runs: int = 9
    ) -> list[float]:
        """Shortest seconds of each step on one core, all sequences in one slab.

        A step's weights were last read one round before, as in a forward pass.
        """
        batch, sequence = mask.shape
        lengths, space = self._lengths(mask)
        slab = self._make_slab(mask, np.arange(batch), lengths, space)
        results = {
            name: np.zeros((batch, *((1,) if place else (sequence,)), channels), np.float32)
            for name, (_, channels, place) in self.plan.results.items()
        }
        job, keep = self._job(slab, indices, results)
        arena, arena_1 = self._arenas(0, [slab])
        for name, value in (("arena", arena), ("arena_1", arena_1)):
            job[JOB_FIELDS.index(name)] = value
        job[JOB_FIELDS.index("scratch")] = self._scratch(0, [slab])
        steps = self._compiled(slab)
        found = [float("inf")] * len(steps)
        for _ in range(runs):
            for number in range(len(steps)):
                begin = time.perf_counter()
                self._pool.run(steps[number : number + 1], [job], threads=1)
                found[number] = min(found[number], time.perf_counter() - begin)
        del keep
        return found

    def _slabs(self, mask: NDArray[np.bool_]) -> list[_Slab]:
        """Cut the batch; one slab for all if that keeps every thread busier."""
        lengths, space = self._lengths(mask)
        threads = self._pool.threads
        total = int(space.sum())
        alone = len(lengths) < threads or total <= _SLAB_TOKENS // 2
        if alone:
            return [self._make_slab(mask, np.arange(len(lengths)), lengths, space)]
        limit = max(_SLAB_TOKENS // 2, min(_SLAB_TOKENS, -(-total // threads)))
        groups: list[list[int]] = [[]]
        used = 0
        for row in np.argsort(-lengths, kind="stable"):
            if used and used + space[row] > limit:
                groups.append([])
                used = 0
            groups[-1].append(int(row))
            used += int(space[row])
        return [self._make_slab(mask, np.array(g), lengths, space) for g in groups]

    def _lengths(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Tokens of each sequence, and those that it takes in a slab."""
        lengths = (_spanned(mask) if self._by_distance else mask).sum(1)
        return lengths, -(-lengths // CHUNK) * CHUNK

    def _make_slab(
        self,
        mask: NDArray[np.bool_],
        rows: NDArray[np.intp],
        lengths: NDArray[np.intp],
        space: NDArray[np.intp],
    ) -> _Slab:
        taken = space[rows]
        starts = np.concatenate([[0], np.cumsum(taken)])
        width = _width(int(starts[-1]), self._widest)
        total = max(width, -(-int(starts[-1]) // width) * width)
        origin = np.full(total, -1, np.int32)
        sequence = mask.shape[1]
        for row, start in zip(rows, starts[:-1], strict=True):
            places = np.flatnonzero(mask[row])
            inside = places - places[0] if self._by_distance else np.arange(len(places))
            origin[start + inside] = row * sequence + places
        return _Slab(rows, starts[:-1], lengths[rows], origin, width)

    def _together(self, slab: _Slab, indices: Any, results: Any) -> None:
        """One slab for a team of threads."""
        job, keep = self._job(slab, indices, results)
        arena, arena_1 = self._arenas(0, [slab])
        job[JOB_FIELDS.index("arena")] = arena
        job[JOB_FIELDS.index("arena_1")] = arena_1
        panels = len(slab.origin) // slab.width
        shape = (slab.width, panels, len(slab.rows))
        teams = self._teams.setdefault(shape, Teams(self._pool.threads, panels))
        team = teams.choose()
        parts = 1
        if team.threads > 1:
            parts = min(MOST_PARTS, team.threads if team.by_panel else self._parts)
        jobs = []
        for part in range(parts):
            own = job.copy()
            own[JOB_FIELDS.index("part")] = part
            own[JOB_FIELDS.index("parts")] = parts
            own[JOB_FIELDS.index("by_panel")] = int(team.by_panel)
            own[JOB_FIELDS.index("scratch")] = self._scratch(part, [slab])
            jobs.append(own)
        steps = self._compiled(slab)
        begin = time.perf_counter()
        self._pool.run(steps, jobs, threads=team.threads)
        teams.took(team, time.perf_counter() - begin)
        del keep

    def _apart(self, slabs: list[_Slab], indices: Any, results: Any) -> None:
        """Several slabs; whichever thread takes one runs all its steps in memory of its own."""
        made = [self._job(slab, indices, results) for slab in slabs]
        memories = [
            (self._scratch(thread, slabs), *self._arenas(thread, slabs))
            for thread in range(self._pool.threads)
        ]
        jobs = [job for job, _ in made]
        self._pool.run(self._compiled(slabs[0]), jobs, np.array(memories, np.int64))
        del made

    def _job(self, slab: _Slab, indices: Any, results: Any) -> tuple[NDArray[np.int64], list[Any]]:
        """The job of one slab as one part, and the arrays it points to."""
        tokens, count = len(slab.origin), len(slab.rows)
        width_1 = _width(count, self._widest)
        tokens_1 = _padded(count, self._widest)
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
        values = {
            "parts": 1,
            "sequences": table.ctypes.data,
            "sequence_count": count,
            "tables": pointers.ctypes.data,
            "tokens": tokens,
            "panels": tokens // slab.width,
            "tokens_1": tokens_1,
            "panels_1": tokens_1 // width_1,
        }
        if self._by_distance:
            # A block of keys may begin before the last token and end after it.
            hidden = np.zeros(tokens + EDGE, np.float32)
            hidden[:tokens][slab.origin < 0] = HIDDEN
            arrays.append(hidden)
            values["hidden"] = hidden.ctypes.data
        job = np.array([values.get(name, 0) for name in JOB_FIELDS], np.int64)
        return job, [arrays, pointers, table]

    def _scratch(self, part: int, slabs: Sequence[_Slab]) -> int:
        """Address of the scratch memory of a part (or thread), large enough for every slab."""
        longest = max(int(slab.lengths.max()) for slab in slabs)
        if longest not in self._scratches:
            sizes = (step.kernel.scratch(step.words, longest) for step in self.plan.steps)
            self._scratches[longest] = max(sizes)
        return self._grown("scratch", part, self._scratches[longest])

    def _arenas(self, thread: int, slabs: Sequence[_Slab]) -> tuple[int, int]:
        """Addresses of the arenas of both spaces, large enough for every slab."""
        per_token, per_sequence = self.arena.token_bytes
        tokens = max(len(slab.origin) for slab in slabs)
        sequences = max(_padded(len(slab.rows), self._widest) for slab in slabs)
        return (
            self._grown("arena", thread, per_token * tokens),
            self._grown("arena_1", thread, per_sequence * sequences),
        )

    def _grown(self, what: str, number: int, size: int) -> int:
        known = self._memory.get((what, number))
        if known is None or len(known) < size:
            known = self._memory[what, number] = aligned(size)
        return int(known.ctypes.data)

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
            address = self.engine.address(*step.kernel.code(self.engine.isa, width))
            words = {**step.words, "width_1": widths[1], **self._splits(step)}
            bits = [word_bits(words.get(name, 0), self.arena) for name in step.kernel.fields]
            encoded.append(np.array([address, *bits], np.int64))
        return np.array([step.ctypes.data for step in encoded], np.int64), encoded

    def _splits(self, step: Step) -> dict[str, NDArray[np.int64]]:
        """The word that divides a linear's rows among the parts; none for other steps."""
        work, unit, rows = (step.words.get(name) for name in ("work", "unit", "rows"))
        if not isinstance(work, np.ndarray):
            return {}
        assert isinstance(unit, int)
        assert isinstance(rows, int)
        key = (id(work), rows)
        if key not in self._divided:
            self._divided[key] = splits(work, unit, rows, self._parts)
        return {"splits": self._divided[key]}


def _spanned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All tokens from the first real one of each sequence to the last."""
    seen = np.maximum.accumulate(mask, axis=1)
    ahead = np.maximum.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(seen & ahead)
