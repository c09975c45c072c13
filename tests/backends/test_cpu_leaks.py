from __future__ import annotations

from pathlib import Path

from benchmarks.cpu_leaks import grown_bytes
from sparsefx.backends.cpu.target import CpuTarget
from tests.programs import captured


def test_calls_keep_no_memory() -> None:
    compiled = CpuTarget(threads=2).compile(captured("bert-cls"))
    # 512 kB in 1,000 calls are 0.5 kB per call: less than any array or tensor that a call makes.
    assert grown_bytes(compiled, calls=1000, warm=100) < 1 << 19


def test_compiling_again_starts_no_threads() -> None:
    tasks = Path("/proc/self/task")
    program = captured("bert-cls")
    CpuTarget(threads=2).compile(program)
    before = {task.name for task in tasks.iterdir()}
    for _ in range(5):
        CpuTarget(threads=2).compile(program)
    # Threads of what earlier tests left may end meanwhile: what counts is that none is new.
    assert {task.name for task in tasks.iterdir()} <= before
