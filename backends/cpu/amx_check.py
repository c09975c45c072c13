"""The self-check of AMX: linears on tiles against exact integers, attention against dot products.

`python -m sparsefx.backends.cpu.amx_check` runs it; `amx_host` does so in a child process, once
on each machine. Odd shapes, empty rows, every panel width, one thread and two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.amx_host import DIFFERS, PASSED, ask_permission
from sparsefx.backends.cpu.engine import Engine
from sparsefx.backends.cpu.epilogue import Epilogue
from sparsefx.backends.cpu.isa import ISAS, Isa
from sparsefx.backends.cpu.panel import WIDTHS, interleaved_rows
from sparsefx.backends.cpu.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.pool import Pool
from sparsefx.backends.cpu.private import cache_folder
from sparsefx.backends.cpu.runtime import Runtime
from sparsefx.backends.cpu.weights import Format, pack

__all__ = ["FORMATS", "attention", "check", "kernel_texts", "main"]

FORMATS: tuple[Format, ...] = ("dense_amx", "masked_amx")
_TOKENS = (1, 20, 130)
"""One panel of 16, one of 32, three of 64."""
_SHAPES = ((3, 5, 1.0), (33, 64, 0.5), (70, 200, 0.1), (40, 130, 0.0))
"""Rows, columns, density."""
_HEADS = ((2, 64, (128,)), (1, 20, (33, 70)))
"""Heads, their channels, lengths of the sequences."""
_ZERO_POINT = 7


def kernel_texts(isa: Isa) -> list[str]:
    """The code that is checked."""
    kernels = [catalog.linear(format, Epilogue(integer=True)) for format in FORMATS]
    kernels.append(catalog.other("attention_amx"))
    return [kernel.code(isa, width)[1] for kernel in kernels for width in WIDTHS]


def check(isa: Isa) -> str:
    """Compare with exact integers; says what differs, or ""."""
    engine = Engine(isa, cache_folder())
    pools = [Pool(engine, threads) for threads in (1, 2)]
    rng = np.random.default_rng(0)
    for tokens, (rows, columns, density), format in product(_TOKENS, _SHAPES, FORMATS):
        x = rng.integers(0, 256, (tokens, columns))
        w = rng.integers(-128, 128, (rows, columns)) * (rng.random((rows, columns)) < density)
        exact = (x - _ZERO_POINT) @ w.T
        for pool in pools:
            found = _linear(x, w.astype(np.int8), format, engine, pool)
            if not np.array_equal(found, exact):
                return f"{format} [{rows}, {columns}] is wrong for {tokens} tokens"
    for heads, size, lengths in _HEADS:
        found, expected = (
            attention(kind, heads, size, lengths, engine, pools[1])
            for kind in ("attention_amx", "attention_i8")
        )
        if not np.array_equal(found, expected):
            return f"attention with heads of {size} channels differs for {lengths} tokens"
    return ""


def attention(
    kind: str, heads: int, size: int, lengths: Sequence[int], engine: Engine, pool: Pool
) -> NDArray[np.float32]:
    """Attention of random codes and values, fp32 [sequences, longest, channels]."""
    rng = np.random.default_rng(size)
    channels = heads * size
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    steps: list[Step] = []
    words: dict[str, Word] = {"heads": heads, "head_size": size, "scale": 3e-4, "q_zero": 131}
    for name in "qkv":
        source, codes = Buffer(name, channels, 4), Buffer(f"{name}.codes", channels, 1)
        table = rng.integers(0, 256, (mask.size, channels)).astype(np.float32)
        table = np.pad(table if name != "v" else table / 99 - 1, ((0, 0), (0, -channels % 16)))
        embed: dict[str, Word] = {"output": source, "rows": channels, "table0": table}
        embed |= {"stride": table.shape[1], "indices0": 2}
        steps.append(Step(catalog.embedding(1), embed, name))
        if name != "v":
            quantize: dict[str, Word] = {"rows": channels, "input": source, "output_bytes": codes}
            quantize |= {"inverse_scale": 1.0, "zero_point": 0}
            steps.append(Step(catalog.other("quantize"), quantize, name))
        words |= {name: source if name == "v" else codes, f"{name}_rows": channels}
    target = Buffer("y", channels, 4)
    words |= {"output": target, "output_rows": channels}
    steps.append(Step(catalog.other(kind), words, "y"))
    unpack: dict[str, Word] = {"rows": channels, "input": target, "origin": 0, "result": 3}
    steps.append(Step(catalog.other("unpack"), unpack, "y"))
    runtime = Runtime(Plan(tuple(steps), ("index",), {"y": (3, channels, 0)}), engine, pool)
    index = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
    return runtime.run(mask, {"index": index})["y"]


def _linear(
    x: NDArray[np.int64], w: NDArray[np.int8], format: Format, engine: Engine, pool: Pool
) -> NDArray[np.float32]:
    """(x - zero point) w^T as fp32 [tokens, rows]: an embedding of x, quantized, times w."""
    (tokens, columns), rows = x.shape, len(w)
    table = np.zeros((tokens, -(-columns // 16) * 16), np.float32)
    table[:, :columns] = x - _ZERO_POINT
    source, octets = Buffer("x", columns, 4), Buffer("q", columns, 1)
    mixed = Buffer("m", interleaved_rows(columns, engine.isa), 1)
    target = Buffer("y", rows, 4)
    embed: dict[str, Word] = {"output": source, "rows": columns, "stride": table.shape[1]}
    quantize: dict[str, Word] = {"rows": columns, "input": source, "output_bytes": octets}
    mix: dict[str, Word] = {"rows": mixed.rows, "columns": columns, "input": octets}
    linear: dict[str, Word] = {"rows": rows, "input": mixed, "output": target}
    steps = (
        Step(catalog.embedding(1), embed | {"table0": table, "indices0": 2}, "x"),
        Step(
            catalog.other("quantize"),
            quantize | {"inverse_scale": 1.0, "zero_point": _ZERO_POINT},
            "q",
        ),
        Step(catalog.other("interleave"), mix | {"output_bytes": mixed}, "m"),
        Step(
            catalog.linear(format, Epilogue(integer=True)),
            linear
            | pack(w, format, _ZERO_POINT).words
            | {"scale": np.ones(rows, np.float32), "bias": np.zeros(rows, np.float32)},
            "y",
        ),
        Step(
            catalog.other("unpack"),
            {"rows": rows, "input": target, "origin": 0, "result": 3},
            "y",
        ),
    )
    runtime = Runtime(Plan(steps, ("index",), {"y": (3, rows, 0)}), engine, pool)
    index = np.arange(tokens, dtype=np.int32)[None]
    result: NDArray[np.float32] = runtime.run(np.ones((1, tokens), np.bool_), {"index": index})[
        "y"
    ][0]
    return result


def main(name: str = "amx") -> int:
    """Check one instruction set with tiles, print the verdict, give the exit code.

    Returns:
        0 if all is exact, `amx_host.DIFFERS` if something is not, 1 without permission to check.
    """
    isa = next(isa for isa in ISAS.values() if isa.name == name)
    refused = ask_permission() if isa.tiles == "hardware" else ""
    wrong = "" if refused else check(isa)
    sys.stdout.write(f"{refused or wrong or PASSED}\n")
    return 1 if refused else DIFFERS if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
