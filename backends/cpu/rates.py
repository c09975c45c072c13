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
from sparsefx.backends.cpu.kernels.peak import Unit, products
from sparsefx.backends.cpu.memory import aligned_copy
from sparsefx.backends.cpu.panel import interleaved_rows
from sparsefx.backends.cpu.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.pool import shared_pool
from sparsefx.backends.cpu.private import cache_folder, read_private, write_private
from sparsefx.backends.cpu.runtime import Runtime
from sparsefx.backends.cpu.weights import Format, Packed, pack
from sparsefx.backends.formats.amx_tiles import TILE_COLUMNS, TILE_ROWS

__all__ = [
    "BUILT_IN",
    "Rates",
    "attention_seconds",
    "faster",
    "linear_seconds",
    "machine_name",
    "measure",
    "measured_rates",
]

_TOKENS = 128
_PANELS = 2
_COLD_BYTES = 6 << 20
_RUNS = 25
_VERSION = "4"


@dataclass(frozen=True)
class Rates:
    """Nanoseconds of one core per panel of 64 tokens, and what its units can do at most.

    Attributes:
        quad: Four non-zeros of a row (quads).
        block: Four neighbouring weights of a row (blocks).
        nonzero: One non-zero (rows).
        group: Six rows times four channels (dense_i8).
        channel: Six rows times one channel (dense_f32).
        tile: 16 rows times 64 channels (dense_amx).
        masked_tile: The same with its weights expanded from non-zeros (masked_amx).
        attention: A head of 64 channels for 128 tokens, with dot products (attention_i8).
        attention_tiles: The same on tiles (attention_amx).
        row: What a row costs besides: its epilogue, and the mispredicted end of its loop.
        peak: Multiply-adds per nanosecond on registers: int8 dot products where there are any.
        peak_f32: The same for fp32.
        peak_tiles: The same for int8 products of tiles.
        origin: Where the figures come from.
    """

    quad: float
    block: float
    nonzero: float
    group: float
    channel: float
    tile: float
    masked_tile: float
    attention: float
    attention_tiles: float
    row: float
    peak: float
    peak_f32: float
    peak_tiles: float
    origin: str


BUILT_IN = Rates(
    quad=2.44,
    block=1.95,
    nonzero=2.19,
    group=6.85,
    channel=6.85,
    tile=37.0,
    masked_tile=31.0,
    attention=20_800.0,
    attention_tiles=13_000.0,
    row=8.2,
    peak=233.0,
    peak_f32=58.0,
    peak_tiles=3200.0,
    origin="built in: a Zen 4 core at 3.65 GHz, tiles of a Xeon core with AMX",
)
"""Used where nothing may be measured: results do not depend on the machine then.

Tiles: prototypes without epilogues, 768 x 768 weights from beyond the second-level cache, 128
tokens: 43 microseconds dense; expanded from weights in that cache, 1.5 for 32 rows without overlap.
Attention on tiles is an estimate.
"""


@cache
def measured_rates(isa: Isa) -> Rates:
    """The rates of this machine."""
    name = f"rates-{machine_name(isa)}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        return Rates(**json.loads(kept))
    found = measure(isa)
    write_private(cache_folder(), name, json.dumps(asdict(found)).encode())
    return found


def faster(matrix: NDArray[Any], formats: Sequence[Format], isa: Isa) -> dict[Format, float]:
    """Nanoseconds per panel of each format on these very weights, cold; measured once."""
    content = hashlib.sha256(np.ascontiguousarray(matrix).data).hexdigest()[:16]
    name = f"tuned-{machine_name(isa)}-{'x'.join(map(str, matrix.shape))}-{content}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        known: dict[Format, float] = json.loads(kept)
        if set(formats) <= set(known):
            return {format: known[format] for format in formats}
    found = {format: 1e9 * linear_seconds(matrix, format, isa) / _PANELS for format in formats}
    write_private(cache_folder(), name, json.dumps(found).encode())
    return found


def machine_name(isa: Isa) -> str:
    """What the figures depend on, as a short name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    kept = [line for line in lines if line.startswith(("model", "cpu family", "stepping"))]
    parts = (_VERSION, platform.machine(), isa.name, isa.flags, *sorted(set(kept)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def measure(isa: Isa) -> Rates:
    """Time each format at two numbers of units per row."""
    rows, wide, narrow = 384, 768, 192
    nonzero, row = _slope("rows", isa, [_sparse(rows, wide, n, np.float32) for n in (32, 160)])
    cell, _ = _slope("dense_f32", isa, _dense(rows, (narrow, wide), np.float32))
    quad = block = byte_cell = tile_cell = masked_cell = attention = attention_tiles = 0.0
    if isa.has_dot:
        quad, row = _slope("quads", isa, [_sparse(rows, wide, n, np.int8) for n in (32, 160)])
        block, _ = _slope("blocks", isa, [_blocked(rows, wide, n) for n in (8, 40)])
        byte_cell, _ = _slope("dense_i8", isa, _dense(rows, (narrow, wide), np.int8))
    if isa.has_tiles:
        tile_cell, _ = _slope("dense_amx", isa, _dense(rows, (narrow, wide), np.int8))
        tenth = [(_sparse(rows, n, n // 10, np.int8)[0], float(n)) for n in (narrow, wide)]
        masked_cell, _ = _slope("masked_amx", isa, tenth)
        attention = 1e9 * attention_seconds("attention_i8", isa)
        attention_tiles = 1e9 * attention_seconds("attention_amx", isa)
    return Rates(
        quad=quad,
        block=block,
        nonzero=nonzero,
        group=24 * byte_cell,
        channel=6 * cell,
        tile=TILE_ROWS * TILE_COLUMNS * tile_cell,
        masked_tile=TILE_ROWS * TILE_COLUMNS * masked_cell,
        attention=attention,
        attention_tiles=attention_tiles,
        row=row,
        peak=_peak(isa, "dots" if isa.has_dot else "fmas"),
        peak_f32=_peak(isa, "fmas"),
        peak_tiles=_peak(isa, "tiles") if isa.has_tiles else 0.0,
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
        (1e9 * linear_seconds(matrix, format, isa) / (_PANELS * len(matrix)), units)
        for matrix, units in cases
    )
    unit = max(1e-3, (many - few) / (more - less))
    return unit, max(0.0, few - unit * less)


def linear_seconds(matrix: NDArray[Any], format: Format, isa: Isa, tokens: int = _TOKENS) -> float:
    """Seconds that a linear whose weights are cold takes on one core."""
    packed = pack(matrix, format)
    copies = min(24, max(4, -(-_COLD_BYTES // max(1, packed.stored_bytes))))
    steps = [_step(matrix, _copied(packed), isa) for _ in range(copies)]
    return _plan_seconds(steps, isa, tokens) / copies


def attention_seconds(kind: str, isa: Isa, tokens: int = _TOKENS, heads: int = 4) -> float:
    """Seconds of one core per head of 64 channels, all codes and values zero."""
    rows = 64 * heads
    words: dict[str, Word] = {"heads": heads, "head_size": 64, "scale": 1.0}
    words |= {"output": Buffer("y", rows, 4), "output_rows": rows}
    for name, item in (("q", 1), ("k", 1), ("v", 4)):
        words |= {name: Buffer(name, rows, item), f"{name}_rows": rows}
    return _plan_seconds([Step(catalog.other(kind), words, "attention")], isa, tokens) / heads


def _copied(packed: Packed) -> Packed:
    words = {
        name: aligned_copy(word) if isinstance(word, np.ndarray) else word
        for name, word in packed.words.items()
    }
    return Packed(packed.format, words)


def _step(matrix: NDArray[Any], packed: Packed, isa: Isa) -> Step:
    rows, columns = matrix.shape
    integer = matrix.dtype == np.int8
    item = 4 if packed.format in ("rows", "dense_f32") else 1
    words: dict[str, Word] = {
        **packed.words,
        "rows": rows,
        "input": Buffer("x", interleaved_rows(columns, isa), item),
        "output": Buffer("y", rows, 4),
        "scale": np.ones(rows, np.float32),
        "bias": np.zeros(rows, np.float32),
        "space": 0,
    }
    return Step(catalog.linear(packed.format, Epilogue(integer)), words, "linear")


def _plan_seconds(steps: Sequence[Step], isa: Isa, tokens: int = _TOKENS) -> float:
    """The shortest time of one thread for some steps."""
    engine = shared_engine(isa)
    runtime = Runtime(Plan(tuple(steps), (), {}), engine, shared_pool(engine, 1))
    mask = np.ones((1, tokens), np.bool_)
    seconds = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        runtime.run(mask, {})
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _peak(isa: Isa, unit: Unit, rounds: int = 400_000) -> float:
    """Multiply-adds per nanosecond of one core, on registers."""
    kernel = catalog.peak_kernel(unit)
    seconds = _plan_seconds([Step(kernel, {"rounds": rounds, "space": 0}, "peak")], isa)
    return rounds * products(isa, unit) / seconds / 1e9
