"""What this machine takes for a unit of each format's work: measured once, then kept.

A core is timed on weights that do not fit its second-level cache, as those of a model do not: each
format at two numbers of units per row, which tells the cost of a unit from that of a row. It takes
about a second for each instruction set and is kept in the private cache, by processor and
instruction set, as are the results of `faster`, by what is in the weights.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.engine import shared_engine
from sparsefx.backends.cpu.epilogue import Epilogue
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.peak import CHAINS
from sparsefx.backends.cpu.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.pool import shared_pool
from sparsefx.backends.cpu.private import cache_folder, read_private, write_private
from sparsefx.backends.cpu.runtime import Runtime
from sparsefx.backends.cpu.weights import Format, Packed, pack

__all__ = ["BUILT_IN", "Rates", "faster", "measured_rates"]

_TOKENS = 128
_PANELS = 2
_COLD_BYTES = 6 << 20
_RUNS = 25
_VERSION = "2"


@dataclass(frozen=True)
class Rates:
    """Nanoseconds of one core per panel of 64 tokens, and what its units can do at most.

    Attributes:
        quad: Four non-zeros of a row (quads).
        block: Four neighbouring weights of a row (blocks).
        nonzero: One non-zero (rows).
        group: Six rows times four channels (dense_i8).
        channel: Six rows times one channel (dense_f32).
        row: What a row costs besides: its epilogue, and the mispredicted end of its loop.
        peak: Multiply-adds per nanosecond on registers: int8 dot products where there are any.
        peak_f32: The same for fp32.
        origin: Where the figures come from.
    """

    quad: float
    block: float
    nonzero: float
    group: float
    channel: float
    row: float
    peak: float
    peak_f32: float
    origin: str


BUILT_IN = Rates(
    quad=2.44,
    block=1.95,
    nonzero=2.19,
    group=6.85,
    channel=6.85,
    row=8.2,
    peak=233.0,
    peak_f32=58.0,
    origin="built in: a Zen 4 core at 3.65 GHz",
)
"""Used where nothing may be measured: results do not depend on the machine then."""


@cache
def measured_rates(isa: Isa) -> Rates:
    """The rates of this machine."""
    name = f"rates-{_machine(isa)}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        return Rates(**json.loads(kept))
    found = _measure(isa)
    write_private(cache_folder(), name, json.dumps(asdict(found)).encode())
    return found


def faster(matrix: NDArray[Any], formats: Sequence[Format], isa: Isa) -> dict[Format, float]:
    """Nanoseconds per panel of each format on these very weights, cold; measured once."""
    content = hashlib.sha256(np.ascontiguousarray(matrix).data).hexdigest()[:16]
    name = f"tuned-{_machine(isa)}-{'x'.join(map(str, matrix.shape))}-{content}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        known: dict[Format, float] = json.loads(kept)
        if set(formats) <= set(known):
            return {format: known[format] for format in formats}
    found = {format: 1e9 * _linear_seconds(matrix, format, isa) for format in formats}
    write_private(cache_folder(), name, json.dumps(found).encode())
    return found


def _machine(isa: Isa) -> str:
    """What the figures depend on, as a short name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    kept = [line for line in lines if line.startswith(("model", "cpu family", "stepping"))]
    parts = (_VERSION, platform.machine(), isa.name, isa.flags, *sorted(set(kept)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _measure(isa: Isa) -> Rates:
    """Time each format at two numbers of units per row."""
    rows, wide, narrow = 384, 768, 192
    nonzero, row = _slope("rows", isa, [_sparse(rows, wide, n, np.float32) for n in (32, 160)])
    cell, _ = _slope("dense_f32", isa, _dense(rows, (narrow, wide), np.float32))
    quad = block = byte_cell = 0.0
    if isa.has_dot:
        quad, row = _slope("quads", isa, [_sparse(rows, wide, n, np.int8) for n in (32, 160)])
        block, _ = _slope("blocks", isa, [_blocked(rows, wide, n) for n in (8, 40)])
        byte_cell, _ = _slope("dense_i8", isa, _dense(rows, (narrow, wide), np.int8))
    return Rates(
        quad=quad,
        block=block,
        nonzero=nonzero,
        group=24 * byte_cell,
        channel=6 * cell,
        row=row,
        peak=_peak(isa, dots=isa.has_dot),
        peak_f32=_peak(isa, dots=False),
        origin=f"measured on this machine, {isa.name}",
    )


def _sparse(rows: int, columns: int, each: int, dtype: Any) -> tuple[NDArray[Any], float]:
    """A matrix with `each` non-zeros in every row, and its units per row."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((rows, columns), dtype)
    for row in matrix:
        row[rng.choice(columns, each, replace=False)] = 1
    return matrix, each / 4 if dtype is np.int8 else each


def _blocked(rows: int, columns: int, each: int) -> tuple[NDArray[Any], float]:
    """An int8 matrix with `each` aligned groups of four in every row, and that number."""
    groups, _ = _sparse(rows, columns // 4, each, np.float32)
    return np.repeat(groups.astype(np.int8), 4, axis=1), each


def _dense(rows: int, columns: tuple[int, int], dtype: Any) -> list[tuple[NDArray[Any], float]]:
    return [(np.ones((rows, count), dtype), count) for count in columns]


def _slope(
    format: Format, isa: Isa, cases: Sequence[tuple[NDArray[Any], float]]
) -> tuple[float, float]:
    """(nanoseconds of a unit, of a row besides) per panel, from two cases."""
    (few, less), (many, more) = (
        (1e9 * _linear_seconds(matrix, format, isa) / len(matrix), units) for matrix, units in cases
    )
    unit = max(1e-3, (many - few) / (more - less))
    return unit, max(0.0, few - unit * less)


def _linear_seconds(matrix: NDArray[Any], format: Format, isa: Isa) -> float:
    """Seconds per panel of a linear whose weights are cold."""
    packed = pack(matrix, format)
    copies = min(24, max(4, -(-_COLD_BYTES // max(1, packed.stored_bytes))))
    steps = [_step(matrix, _copied(packed)) for _ in range(copies)]
    return _plan_seconds(steps, isa) / (copies * _PANELS)


def _copied(packed: Packed) -> Packed:
    words = {
        name: word.copy() if isinstance(word, np.ndarray) else word
        for name, word in packed.words.items()
    }
    return Packed(packed.format, words)


def _step(matrix: NDArray[Any], packed: Packed) -> Step:
    rows, columns = matrix.shape
    integer = matrix.dtype == np.int8
    item = 4 if packed.format in ("rows", "dense_f32") else 1
    words: dict[str, Word] = {
        **packed.words,
        "rows": rows,
        "input": Buffer("x", columns, item),
        "output": Buffer("y", rows, 4),
        "scale": np.ones(rows, np.float32),
        "bias": np.zeros(rows, np.float32),
        "space": 0,
    }
    return Step(catalog.linear(packed.format, Epilogue(integer)), words, "linear")


def _plan_seconds(steps: Sequence[Step], isa: Isa) -> float:
    """The shortest time of one thread for some steps."""
    engine = shared_engine(isa)
    runtime = Runtime(Plan(tuple(steps), (), {}), engine, shared_pool(engine, 1))
    mask = np.ones((1, _TOKENS), np.bool_)
    seconds = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        runtime.run(mask, {})
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _peak(isa: Isa, *, dots: bool) -> float:
    """Multiply-adds per nanosecond of one core, on registers."""
    rounds = 400_000
    kernel = catalog.peak_kernel(dots=dots)
    seconds = _plan_seconds([Step(kernel, {"rounds": rounds, "space": 0}, "peak")], isa)
    return rounds * CHAINS * isa.lanes * (4 if dots else 1) / seconds / 1e9
