"""What this machine takes for a unit of each format's work: measured once, then kept.

A core is timed on weights that do not fit its second-level cache, as those of a model do not: each
format at two numbers of units per row, which tells the cost of a unit from that of a row. All are
timed in turns (see `turns`). It takes about a second for each instruction set and is kept in the
private cache, by processor and instruction set, as are the results of `faster`, by what is in the
weights.

Rates whose proportions are far from those of the built-in ones were disturbed by other work: they
are measured again, and where that does not help, the built-in ones stand in for a while.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.engine import shared_engine
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.memory import aligned_copy
from sparsefx.backends.cpu.codegen.panel import interleaved_rows
from sparsefx.backends.cpu.kernels.peak import Unit, products
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.machine.private import cache_folder, read_private, write_private
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.plan.weights import SHORT, Format, Packed, pack
from sparsefx.backends.cpu.runtime.pool import shared_pool
from sparsefx.backends.cpu.runtime.runtime import Runtime
from sparsefx.backends.cpu.runtime.turns import shortest
from sparsefx.backends.formats.amx_tiles import TILE_COLUMNS, TILE_ROWS

logger = logging.getLogger(__name__)

__all__ = [
    "BUILT_IN",
    "Rates",
    "attention_seconds",
    "faster",
    "linear_seconds",
    "machine_name",
    "measure",
    "measured_rates",
    "spread",
]

_TOKENS = 128
_PANELS = 2
_COLD_BYTES = 6 << 20
_COPIES = 4
_HEADS = 4
_SHORT_BYTES = 3 << 19
"""Of one run in turns: long enough that its cold activations count for little."""

_BUDGET, _TUNING_BUDGET = 0.6, 0.1
_SUSPECT, _IMPLAUSIBLE = 2.0, 3.0
_TRIALS = 3
_RETRY_SECONDS = 3600.0
_VERSION = "10"
_PROCESSOR = ("model", "cpu family", "stepping", "CPU implementer", "CPU part", "CPU variant")


@dataclass(frozen=True)
class Rates:
    """Nanoseconds of one core per panel of 64 tokens, and what its units can do at most.

    Attributes:
        quad: Four non-zeros of a row (quads).
        block: Four neighbouring weights of a row (blocks).
        nonzero: One non-zero (rows).
        group: Six rows times four channels (dense_i8).
        channel: Six rows times one channel (dense_f32).
        short_nonzero: One non-zero in floats of 16 bits (rows_bf16, rows_fp16), 0.0 without them.
        short_channel: Six rows times one channel (dense_bf16), 0.0 likewise.
        tile: 16 rows times 64 channels (dense_amx).
        masked_tile: The same with its weights expanded from non-zeros (masked_amx).
        short_tile: 16 rows times 32 channels (dense_amx_bf16).
        attention: A head of 64 channels for 128 tokens, with dot products (attention_i8); 0.0 if
            it was not measured, for want of tiles to compare with.
        attention_tiles: The same on tiles (attention_amx), 0.0 likewise.
        row: What a row costs besides: its epilogue, and the mispredicted end of its loop.
        peak: Multiply-adds per nanosecond on registers: int8 dot products where there are any.
        peak_f32: The same for fp32.
        peak_short: The same for floats of 16 bits.
        peak_tiles: The same for int8 products of tiles.
        origin: Where the figures come from.
    """

    quad: float
    block: float
    nonzero: float
    group: float
    channel: float
    short_nonzero: float
    short_channel: float
    tile: float
    masked_tile: float
    short_tile: float
    attention: float
    attention_tiles: float
    row: float
    peak: float
    peak_f32: float
    peak_short: float
    peak_tiles: float
    origin: str


BUILT_IN = Rates(
    quad=2.12,
    block=1.59,
    nonzero=1.55,
    group=6.77,
    channel=6.97,
    short_nonzero=0.9,
    short_channel=3.5,
    tile=37.0,
    masked_tile=31.0,
    short_tile=37.0,
    attention=28_000.0,
    attention_tiles=24_000.0,
    row=10.3,
    peak=233.0,
    peak_f32=58.0,
    peak_short=116.0,
    peak_tiles=3200.0,
    origin="built in: a Zen 4 core at 3.65 GHz, tiles of a Xeon core with AMX",
)
"""Used where nothing may be measured: results do not depend on the machine then.

Figures of tiles come from prototypes outside this repository, without epilogues, on a Xeon with
AMX; nobody can measure them again from here. That `masked_tile` is less than `tile`, so that masked
weights are preferred to dense ones, is a guess, as is attention on tiles. `benchmarks/cpu_amx.py`
measures all of them.
"""


@cache
def measured_rates(isa: Isa) -> Rates:
    """The rates of this machine; the built-in ones where it is too busy to be measured.

    Those are kept for an hour, and their `origin` says why they are used.
    """
    name = f"rates-{machine_name(isa)}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        known = json.loads(kept)
        until = known.pop("until")
        if until is None or 0 < until - time.time() <= _RETRY_SECONDS:
            return Rates(**known)
    found, until = _plausible(isa), None
    if isa.is_x86 and spread(found) > _IMPLAUSIBLE:
        until = time.time() + _RETRY_SECONDS
        why = f"this machine's were implausible, {spread(found):.1f}x apart: is it busy?"
        found = replace(BUILT_IN, origin=f"{BUILT_IN.origin} ({why})")
        logger.warning("formats are chosen by rates %s", found.origin)
    write_private(cache_folder(), name, json.dumps({**asdict(found), "until": until}).encode())
    return found


def spread(found: Rates) -> float:
    """How far the proportions of the formats are from those of the built-in rates, 1 or more.

    Tiles are left out, as are formats that the instruction set does not have.
    """
    names = ("quad", "block", "nonzero", "group", "channel")
    ratios = [getattr(found, name) / getattr(BUILT_IN, name) for name in names]
    known = [ratio for ratio in ratios if ratio > 0]
    return float(max(known) / min(known))


def _plausible(isa: Isa) -> Rates:
    """The most plausible of a few measurements; the first one unless it is suspect.

    No rates of Arm are known to compare with.
    """
    found = measure(isa)
    for _ in range(_TRIALS - 1):
        if not isa.is_x86 or spread(found) <= _SUSPECT:
            break
        found = min(found, measure(isa), key=spread)
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
    cases = [(matrix, format, _copies(pack(matrix, format))) for format in formats]
    seconds = _linears_seconds(cases, isa, _TUNING_BUDGET)
    found = {f: 1e9 * took / _PANELS for f, took in zip(formats, seconds, strict=True)}
    write_private(cache_folder(), name, json.dumps(found).encode())
    return found


def machine_name(isa: Isa) -> str:
    """What the figures depend on, as a short name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    kept = [line for line in lines if line.startswith(_PROCESSOR)]
    parts = (_VERSION, platform.machine(), isa.name, isa.flags, *sorted(set(kept)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def measure(isa: Isa) -> Rates:
    """Time each format at two numbers of units per row, all in turns."""
    cases = _cases(isa)
    flat = [
        (matrix, format, _copies(pack(matrix, format), _SHORT_BYTES))
        for format, pair in cases.items()
        for matrix, _ in pair
    ]
    seconds = iter(_linears_seconds(flat, isa, _BUDGET))
    slopes = {f: _slope([(m, u, next(seconds)) for m, u in pair]) for f, pair in cases.items()}
    unit = {format: slope for format, (slope, _) in slopes.items()}
    attention = attention_tiles = 0.0
    if isa.has_tiles:
        attention = 1e9 * attention_seconds("attention_i8", isa)
        attention_tiles = 1e9 * attention_seconds("attention_amx", isa)
    tile = TILE_ROWS * TILE_COLUMNS
    return Rates(
        quad=unit.get("quads", 0.0),
        block=unit.get("blocks", 0.0),
        nonzero=unit["rows"],
        group=24 * unit.get("dense_i8", 0.0),
        channel=6 * unit["dense_f32"],
        short_nonzero=unit.get("rows_bf16", unit.get("rows_fp16", 0.0)),
        short_channel=6 * unit.get("dense_bf16", 0.0),
        tile=tile * unit.get("dense_amx", 0.0),
        masked_tile=tile * unit.get("masked_amx", 0.0),
        short_tile=tile // 2 * unit.get("dense_amx_bf16", 0.0),
        attention=attention,
        attention_tiles=attention_tiles,
        row=slopes["quads" if isa.has_dot else "rows"][1],
        peak=_peak(isa, "dots" if isa.has_dot else "fmas"),
        peak_f32=_peak(isa, "fmas"),
        peak_short=_peak(isa, "shorts") if isa.short else 0.0,
        peak_tiles=_peak(isa, "tiles") if isa.has_tiles else 0.0,
        origin=f"measured on this machine, {isa.name}",
    )


def _cases(isa: Isa) -> dict[Format, list[tuple[NDArray[Any], float]]]:
    """For each format two matrices, with their units per row."""
    rows, wide, narrow = 384, 768, 192
    cases: dict[Format, list[tuple[NDArray[Any], float]]] = {
        "rows": [_sparse(rows, wide, n, np.float32) for n in (32, 160)],
        "dense_f32": _dense(rows, (narrow, wide), np.float32),
    }
    if isa.has_dot:
        cases["quads"] = [_sparse(rows, wide, n, np.int8) for n in (32, 160)]
        cases["blocks"] = [_blocked(rows, wide, n) for n in (8, 40)]
        cases["dense_i8"] = _dense(rows, (narrow, wide), np.int8)
    if isa.short:
        name: Format = "rows_bf16" if isa.short == "bf16" else "rows_fp16"
        cases[name] = [_sparse(rows, wide, n, np.float32) for n in (32, 160)]
    if isa.short == "bf16":
        cases["dense_bf16"] = _dense(rows, (narrow, wide), np.float32)
    if isa.short == "bf16" and isa.has_tiles:
        cases["dense_amx_bf16"] = _dense(rows, (narrow, wide), np.float32)
    if isa.has_tiles:
        cases["dense_amx"] = _dense(rows, (narrow, wide), np.int8)
        cases["masked_amx"] = [
            (_sparse(rows, n, n // 10, np.int8)[0], float(n)) for n in (narrow, wide)
        ]
    return cases


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


def _slope(cases: Sequence[tuple[NDArray[Any], float, float]]) -> tuple[float, float]:
    """(nanoseconds of a unit, of a row besides) per panel, from two cases with their seconds."""
    (few, less), (many, more) = (
        (1e9 * seconds / (_PANELS * len(matrix)), units) for matrix, units, seconds in cases
    )
    unit = max(1e-3, (many - few) / (more - less))
    return unit, max(0.0, few - unit * less)


def linear_seconds(matrix: NDArray[Any], format: Format, isa: Isa, tokens: int = _TOKENS) -> float:
    """Seconds that a linear whose weights are cold takes on one core."""
    copies = _copies(pack(matrix, format))
    return _linears_seconds([(matrix, format, copies)], isa, _TUNING_BUDGET, tokens)[0]


def _copies(packed: Packed, size: int = _COLD_BYTES) -> int:
    """How many copies of a weight have `size` bytes; by default they fit no second-level cache."""
    return min(24, max(_COPIES, -(-size // max(1, packed.stored_bytes))))


def _linears_seconds(
    cases: Sequence[tuple[NDArray[Any], Format, int]],
    isa: Isa,
    budget: float,
    tokens: int = _TOKENS,
) -> list[float]:
    """Seconds of linears in turns, each run that many times on copies of its weight.

    What a run costs that computes nothing is taken off.
    """
    plans = [[Step(catalog.peak_kernel("fmas"), {"rounds": 1, "space": 0}, "nothing")]]
    for matrix, format, copies in cases:
        packed = pack(matrix, format)
        plans.append([_step(matrix, _copied(packed), isa) for _ in range(copies)])
    idle, *found = shortest([_runtime(steps, isa) for steps in plans], tokens, budget)
    return [
        max(0.0, seconds - idle) / copies
        for seconds, (_, _, copies) in zip(found, cases, strict=True)
    ]


def attention_seconds(kind: str, isa: Isa, tokens: int = _TOKENS) -> float:
    """Seconds of one core per head of 64 channels, all codes and values zero."""
    heads, rows = _HEADS, 64 * _HEADS
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
    item = 4 if packed.format in ("rows", "dense_f32") else 2 if packed.format in SHORT else 1
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


def _runtime(steps: Sequence[Step], isa: Isa) -> Runtime:
    engine = shared_engine(isa)
    return Runtime(Plan(tuple(steps), (), {}), engine, shared_pool(engine, 1))


def _plan_seconds(steps: Sequence[Step], isa: Isa, tokens: int = _TOKENS) -> float:
    """The shortest time of one thread for some steps."""
    return shortest([_runtime(steps, isa)], tokens, _TUNING_BUDGET)[0]


def _peak(isa: Isa, unit: Unit, rounds: int = 100_000) -> float:
    """Multiply-adds per nanosecond of one core, on registers."""
    kernel = catalog.peak_kernel(unit)
    seconds = _plan_seconds([Step(kernel, {"rounds": rounds, "space": 0}, "peak")], isa)
    return rounds * products(isa, unit) / seconds / 1e9
