"""Runs a plan: cuts a batch into slabs and sets the threads to work.

With many tokens each thread takes slabs of its own through the whole plan (no waiting); with few,
all threads share one slab and divide the rows of every layer by non-zeros.

What only the padding of a batch decides is kept for the masks that were seen last: a call of a
small model takes a few milliseconds, and working it out anew half of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.codegen.memory import aligned
from sparsefx.backends.cpu.codegen.panel import widest
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.plan.plan import Arena, Plan, Step, pack_arena, word_bits
from sparsefx.backends.cpu.plan.weights import splits
from sparsefx.backends.cpu.runtime.jobs import WORD, SlabJob
from sparsefx.backends.cpu.runtime.pool import MOST_PARTS, Pool
from sparsefx.backends.cpu.runtime.recent import Recent
from sparsefx.backends.cpu.runtime.slabs import Cut
from sparsefx.backends.cpu.runtime.teams import Team, Teams
from sparsefx.backends.cpu.runtime.turn import Turn

__all__ = ["Runtime"]

_PARTS = 2
"""Parts of a step for each thread that shares it: who is held up takes fewer of them."""

_LEAST_SECONDS = 1e-9
"""What a step is said to take at least; a timer may see none of a short one."""

_TIMED_RUNS = 9
"""Of which the shortest counts."""

_Indices = Mapping[str, NDArray[np.int32]]
_Results = Mapping[str, NDArray[np.float32]]


@dataclass
class _Shared:
    """One slab for a team of threads."""

    steps: NDArray[np.int64]
    slab: SlabJob
    teams: Teams
    jobs: dict[Team, NDArray[np.int64]] = field(default_factory=dict)  # [parts, words]


@dataclass
class _Apart:
    """Several slabs; whichever thread takes one runs all its steps in memory of its own."""

    steps: NDArray[np.int64]
    slabs: list[SlabJob]
    jobs: NDArray[np.int64]  # [slabs, words]
    memories: NDArray[np.int64]  # [threads, MEMORIES]


class Runtime:
    """A plan made ready for one instruction set; calls of several threads take turns.

    Args:
        plan: What to run.
        engine: Compiles and keeps the kernels.
        pool: The threads.
    """

    def __init__(self, plan: Plan, engine: Engine, pool: Pool) -> None:
        self.plan = plan
        self.arena: Arena = pack_arena(plan.steps)
        self.engine = engine
        self._pool = pool
        by_distance = any("distances" in step.kernel.fields for step in plan.steps)
        per_token = self.arena.token_bytes[0]
        self._cut = Cut(widest(engine.isa), pool.threads, per_token, by_distance)
        self._turn = Turn()
        self._steps: dict[tuple[int, int], tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}
        self._calls: Recent[tuple[int, int, bytes], list[_Shared | _Apart]] = Recent()
        self._memory: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._scratches: dict[int, int] = {}  # bytes, by the longest sequence
        self._teams: dict[tuple[int, int, int], Teams] = {}
        self._divided: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._parts = 1 if pool.threads == 1 else min(MOST_PARTS, pool.threads * _PARTS)

    @property
    def isa(self) -> Isa:
        """The instruction set."""
        return self.engine.isa

    def run(self, mask: NDArray[np.bool_], indices: _Indices) -> dict[str, NDArray[np.float32]]:
        """Run a batch.

        Args:
            mask: bool [batch, sequence], False for padding.
            indices: int32 [batch, sequence] for each name in `plan.indices`.

        Returns:
            For each result an fp32 array [batch, sequence, channels] (zeros at padding) or
            [batch, channels].
        """
        results = self._empty(mask.shape)
        with self._turn:
            for call in self._prepared(mask):
                if isinstance(call, _Shared):
                    self._together(call, indices, results)
                else:
                    self._apart(call, indices, results)
        return results

    def time_steps(self, mask: NDArray[np.bool_], indices: _Indices) -> list[float]:
        """Shortest seconds of each step on one core, all sequences in one slab.

        A step's weights were last read one round before, as in a forward pass. What it takes to
        run no step at all is taken off.
        """
        with self._turn:
            slab = SlabJob(self._cut.whole(mask), self.plan, self._cut)
            self._reserve([slab])
            call = self._shared(slab)
            results = self._empty(mask.shape)  # a slab keeps pointers alone
            slab.connect(indices, results)
            job = self._jobs(call, Team(1))
            ranges = [slice(n, n + 1) for n in range(len(call.steps))] + [slice(0, 0)]
            found = [float("inf")] * len(ranges)
            for _ in range(_TIMED_RUNS):
                for number, which in enumerate(ranges):
                    begin = time.perf_counter()
                    self._pool.run(call.steps[which], job, threads=1)
                    found[number] = min(found[number], time.perf_counter() - begin)
        *steps, nothing = found
        return [max(_LEAST_SECONDS, seconds - nothing) for seconds in steps]

    def _empty(self, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
        """The arrays of results for a batch of that shape."""
        batch, sequence = shape
        sizes = {0: (batch, sequence), 1: (batch,)}
        return {
            name: np.zeros((*sizes[space], channels), np.float32)
            for name, (_, channels, space) in self.plan.results.items()
        }

    def _together(self, call: _Shared, indices: _Indices, results: _Results) -> None:
        call.slab.connect(indices, results)
        team = call.teams.choose()
        if team not in call.jobs:
            call.jobs[team] = self._jobs(call, team)
        begin = time.perf_counter()
        self._pool.run(call.steps, call.jobs[team], threads=team.threads)
        call.teams.took(team, time.perf_counter() - begin)

    def _apart(self, call: _Apart, indices: _Indices, results: _Results) -> None:
        for slab in call.slabs:
            slab.connect(indices, results)
        self._pool.run(call.steps, call.jobs, call.memories)

    def _prepared(self, mask: NDArray[np.bool_]) -> list[_Shared | _Apart]:
        """What to run for batches with this mask."""
        key = (*mask.shape, mask.tobytes())
        calls = self._calls.get(key)
        return self._calls.keep(key, self._prepare(mask)) if calls is None else calls

    def _prepare(self, mask: NDArray[np.bool_]) -> list[_Shared | _Apart]:
        slabs = [SlabJob(slab, self.plan, self._cut) for slab in self._cut.slabs(mask)]
        self._reserve(slabs)
        # Slabs of one shape of code go together: code differs by panel width.
        groups: dict[tuple[int, int], list[SlabJob]] = {}
        for slab in slabs:
            groups.setdefault(slab.widths, []).append(slab)
        return [
            self._shared(group[0]) if len(group) == 1 else self._each(group)
            for group in groups.values()
        ]

    def _shared(self, slab: SlabJob) -> _Shared:
        panels = slab.tokens[0] // slab.widths[0]
        shape = (slab.widths[0], panels, len(slab.slab.rows))
        teams = self._teams.setdefault(shape, Teams(self._pool.threads, panels))
        return _Shared(self._compiled(slab.widths), slab, teams)

    def _each(self, slabs: list[SlabJob]) -> _Apart:
        threads = range(self._pool.threads)
        memories = np.array([self._addresses(thread, thread) for thread in threads], np.int64)
        jobs = np.stack([slab.words for slab in slabs])
        return _Apart(self._compiled(slabs[0].widths), slabs, jobs, memories)

    def _jobs(self, call: _Shared, team: Team) -> NDArray[np.int64]:
        """The parts that a team of threads makes of a slab, [parts, words]."""
        parts = 1
        if team.threads > 1:
            parts = min(MOST_PARTS, team.threads if team.by_panel else self._parts)
        jobs = np.repeat(call.slab.words[None], parts, axis=0)
        jobs[:, WORD["part"]] = range(parts)
        jobs[:, WORD["parts"]] = parts
        jobs[:, WORD["by_panel"]] = team.by_panel
        places = [WORD[name] for name in ("scratch", "arena", "arena_1")]
        jobs[:, places] = [self._addresses(part, 0) for part in range(parts)]
        return jobs

    def _reserve(self, slabs: Iterable[SlabJob]) -> None:
        """Make memory large enough for these slabs, whether threads share them or not."""
        slabs = list(slabs)
        longest = max(slab.longest for slab in slabs)
        if longest not in self._scratches:
            sizes = (step.kernel.scratch(step.words, longest) for step in self.plan.steps)
            self._scratches[longest] = max(sizes)
        needed = {
            ("scratch", part): self._scratches[longest]
            for part in range(max(self._parts, self._pool.threads))
        }
        threads = range(self._pool.threads if len(slabs) > 1 else 1)
        for space, name in enumerate(("arena", "arena_1")):
            size = self.arena.token_bytes[space] * max(slab.tokens[space] for slab in slabs)
            needed |= {(name, thread): size for thread in threads}
        for key, size in needed.items():
            if key not in self._memory or len(self._memory[key]) < size:
                self._memory[key] = aligned(size)
                self._calls.clear()  # they point to what was there before

    def _addresses(self, part: int, thread: int) -> tuple[int, int, int]:
        """Addresses of the scratch memory of a part and of a thread's arenas."""
        keys = (("scratch", part), ("arena", thread), ("arena_1", thread))
        scratch, arena, arena_1 = (self._memory[key].ctypes.data for key in keys)
        return scratch, arena, arena_1

    def _compiled(self, widths: tuple[int, int]) -> NDArray[np.int64]:
        """Pointers to the steps for panel widths of tokens and of one token per sequence."""
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
