"""The self-check of AMX: linears on tiles against exact integers, attention against dot products.

`python -m sparsefx.backends.cpu.measure.amx_check` runs it; `amx_host` does so in a child process,
once on each machine. Odd shapes, empty rows, every panel width, one thread and two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.panel import WIDTHS, interleaved_rows, paired_rows
from sparsefx.backends.cpu.kernels.distances import EDGE, FAR
from sparsefx.backends.cpu.machine.amx_host import DIFFERS, PASSED, ask_permission
from sparsefx.backends.cpu.machine.isa import ISAS, Isa
from sparsefx.backends.cpu.machine.private import cache_folder
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.plan.weights import TILED, Format, Packed, pack
from sparsefx.backends.cpu.runtime.pool import Pool
from sparsefx.backends.cpu.runtime.runtime import Runtime

__all__ = [
    "FORMATS",
    "attention",
    "check",
    "distance_words",
    "embed",
    "kernel_texts",
    "linear_input",
    "linear_words",
    "main",
    "pair",
    "run_steps",
]

FORMATS: tuple[Format, ...] = ("dense_amx", "masked_amx")
SHORT_FORMAT: Format = "dense_amx_bf16"
_TILED = "attention_amx"
_TOKENS = (1, 20, 130)
"""One panel of 16, one of 32, three of 64."""
_SHAPES = ((3, 5, 1.0), (33, 64, 0.5), (70, 200, 0.1), (40, 130, 0.0), (33, 768, 0.1))
"""Rows, columns, density; as deep as those of BERT-base only once."""
_HEADS = ((2, 64, (128,)), (1, 20, (33, 70)))
"""Heads, their channels, lengths of the sequences."""
_ZERO_POINT = 7
_INDEX = 2
"""Where a run keeps the numbers of the tokens; results come after them."""


def kernel_texts(isa: Isa) -> list[str]:
    """The code that is checked."""
    kernels = [catalog.linear(format, Epilogue(integer=True)) for format in FORMATS]
    if isa.short:
        kernels += [catalog.linear(SHORT_FORMAT, Epilogue()), catalog.other("pair")]
    kernels += [catalog.other(_TILED), catalog.attention_by_distance(_TILED)]
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
    if wrong := _wrong_short(engine, pools):
        return wrong
    for (heads, size, lengths), by_distance in product(_HEADS, (False, True)):
        shape = (heads, size, lengths)
        expected = attention("attention_i8", *shape, engine, pools[0], by_distance=by_distance)
        for pool in pools:
            found = attention(_TILED, *shape, engine, pool, by_distance=by_distance)
            if not np.array_equal(found, expected):
                return f"attention with heads of {size} channels differs for {lengths} tokens"
    return ""


def _wrong_short(engine: Engine, pools: Sequence[Pool]) -> str:
    """What differs in linears on bf16, "": small integers and their sums are exact."""
    rng = np.random.default_rng(0)
    cases = product(_TOKENS, _SHAPES, pools) if engine.isa.short else ()
    for tokens, (rows, columns, density), pool in cases:
        x = rng.integers(-9, 10, (tokens, columns))
        w = rng.integers(-9, 10, (rows, columns)) * (rng.random((rows, columns)) < density)
        source, mixed, y = Buffer("x", columns, 4), *_short_buffers(rows, columns)
        steps = [embed(x, source), pair(source, mixed)]
        words = linear_words(w, pack(w.astype(np.float32), SHORT_FORMAT), mixed)
        steps.append(Step(catalog.linear(SHORT_FORMAT, Epilogue()), words | {"output": y}, "y"))
        found = run_steps(steps, [y], np.ones((1, tokens), np.bool_), engine, pool)["y"]
        if not np.array_equal(found.reshape(tokens, rows), x @ w.T):
            return f"{SHORT_FORMAT} [{rows}, {columns}] is wrong for {tokens} tokens"
    return ""


def _short_buffers(rows: int, columns: int) -> tuple[Buffer, Buffer]:
    """Activations in pairs of channels, and the result."""
    return Buffer("m", paired_rows(columns), 2), Buffer("y", rows, 4)


def pair(source: Buffer, target: Buffer) -> Step:
    """Bring fp32 rows into the layout that tiles of bf16 read."""
    words: dict[str, Word] = {"rows": target.rows, "columns": source.rows, "input": source}
    return Step(catalog.other("pair"), words | {"output_bytes": target}, target.name)


def attention(
    kind: str,
    heads: int,
    size: int,
    lengths: Sequence[int],
    engine: Engine,
    pool: Pool,
    *,
    by_distance: bool = False,
) -> NDArray[np.float32]:
    """Attention of random codes and values, fp32 [sequences, longest, channels].

    Args:
        kind: Which kernel.
        heads: Its heads.
        size: Channels of one.
        lengths: Of the sequences.
        engine: Compiles it.
        pool: Runs it.
        by_distance: Whether random biases by distance are added.
    """
    rng = np.random.default_rng(size)
    channels = heads * size
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    steps: list[Step] = []
    words: dict[str, Word] = {"heads": heads, "head_size": size, "scale": 3e-4, "q_zero": 131}
    for name in "qkv":
        source, codes = Buffer(name, channels, 4), Buffer(f"{name}.codes", channels, 1)
        values = rng.integers(0, 256, (mask.size, channels)).astype(np.float32)
        steps.append(embed(values if name != "v" else values / 99 - 1, source))
        if name != "v":
            steps.append(_quantize(source, codes, 0))
        words |= {name: source if name == "v" else codes, f"{name}_rows": channels}
    target = Buffer("y", channels, 4)
    words |= {"output": target, "output_rows": channels}
    kernel = catalog.other(kind)
    if by_distance:
        kernel = catalog.attention_by_distance(kind)
        words |= distance_words(rng.normal(0, 3, (heads, 101)).astype(np.float32))
    steps.append(Step(kernel, words, "y"))
    return run_steps(steps, [target], mask, engine, pool)["y"]


def distance_words(
    biases: NDArray[np.float32], before: int = FAR, after: int = FAR
) -> dict[str, Word]:
    """Words for biases [heads, 2 n + 1] by query - key from -n on; further away as at the ends."""
    values = np.pad(biases, ((0, 0), (EDGE, EDGE)), mode="edge")
    return {
        "distances": values,
        "distance_step": values.strides[0],
        "distance_zero": values.shape[1] // 2,
        "distance_last": values.shape[1] - EDGE,
        "before": before,
        "after": after,
    }


def _linear(
    x: NDArray[np.int64], w: NDArray[np.int8], format: Format, engine: Engine, pool: Pool
) -> NDArray[np.float32]:
    """(x - zero point) w^T as fp32 [tokens, rows]: an embedding of x, quantized, times w."""
    steps, source = linear_input(x, _ZERO_POINT, format, engine.isa)
    target = Buffer("y", len(w), 4)
    words = linear_words(w, pack(w, format, _ZERO_POINT), source)
    kernel = catalog.linear(format, Epilogue(integer=True))
    steps.append(Step(kernel, words | {"output": target}, "y"))
    found = run_steps(steps, [target], np.ones((1, len(x)), np.bool_), engine, pool)["y"]
    return found.reshape(len(x), len(w))


def embed(values: NDArray[Any], target: Buffer) -> Step:
    """Bring values [tokens, columns] into a buffer, as the rows of an embedding."""
    table = np.pad(values.astype(np.float32), ((0, 0), (0, -values.shape[1] % 16)))
    words: dict[str, Word] = {"output": target, "rows": target.rows, "table0": table}
    words |= {"stride": table.shape[1], "indices0": _INDEX}
    return Step(catalog.embedding("fp32"), words, target.name)


def _quantize(source: Buffer, codes: Buffer, zero_point: int) -> Step:
    words: dict[str, Word] = {"rows": source.rows, "input": source, "output_bytes": codes}
    words |= {"inverse_scale": 1.0, "zero_point": zero_point}
    return Step(catalog.other("quantize"), words, codes.name)


def linear_input(
    x: NDArray[Any], zero_point: int, format: Format, isa: Isa
) -> tuple[list[Step], Buffer]:
    """Steps that bring codes [tokens, columns] into the layout of a format, and where they lie."""
    columns = x.shape[1]
    source, codes = Buffer("x", columns, 4), Buffer("q", columns, 1)
    steps = [embed(x - zero_point, source), _quantize(source, codes, zero_point)]
    if format not in ("blocks", *TILED):
        return steps, codes
    mixed = Buffer("m", interleaved_rows(columns, isa), 1)
    words: dict[str, Word] = {"rows": mixed.rows, "columns": columns, "input": codes}
    steps.append(Step(catalog.other("interleave"), words | {"output_bytes": mixed}, "m"))
    return steps, mixed


def linear_words(matrix: NDArray[Any], packed: Packed, source: Buffer) -> dict[str, Word]:
    """Words of a linear without scales or biases; its outputs are to be added."""
    rows = len(matrix)
    ones, zeros = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    return {**packed.words, "rows": rows, "input": source, "scale": ones, "bias": zeros}


def run_steps(
    steps: Sequence[Step],
    outputs: Sequence[Buffer],
    mask: NDArray[np.bool_],
    engine: Engine,
    pool: Pool,
) -> dict[str, NDArray[np.float32]]:
    """Run steps for the tokens of a mask [sequences, longest]; the outputs by name."""
    results, last = {}, []
    for number, output in enumerate(outputs, _INDEX + 1):
        words: dict[str, Word] = {"rows": output.rows, "input": output, "origin": 0}
        last.append(Step(catalog.other("unpack"), words | {"result": number}, output.name))
        results[output.name] = (number, output.rows, 0)
    runtime = Runtime(Plan((*steps, *last), ("index",), results), engine, pool)
    index = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
    return runtime.run(mask, {"index": index})


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
