"""Whether the Arm kernels are right on this machine, and what they take.

python benchmarks/cpu_arm.py

For each instruction set of Arm that the machine has: compares int8 linears in every format with
exact integers (odd sizes, the largest products, empty rows, two threads), then measures the rates
by which formats are chosen. It needs numpy and llvmlite, but no torch, so it also runs in an
emulator of Arm (`qemu-aarch64 python3 benchmarks/cpu_arm.py --quick`), whose times mean nothing.
`--isa neon_dotprod_emulated --quick` shows the form of the output on x86-64.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.machine.isa import ISAS, Isa, obstacle
from sparsefx.backends.cpu.measure.amx_check import linear_input, linear_words, run_steps
from sparsefx.backends.cpu.measure.rates import measure
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.plan.weights import DOTS, Format, pack
from sparsefx.backends.cpu.runtime.pool import Pool

NAMES = ("neon", "neon_dotprod", "neon_i8mm")
FORMATS: tuple[Format, ...] = ("rows", "dense_f32", "quads", "blocks", "dense_i8")
CASES = ((1, 5, 3, 1.0), (33, 37, 7, 0.1), (130, 90, 13, 0.5), (70, 64, 9, 0.0), (3, 3072, 2, 1.0))
"""Tokens, columns, rows, density; all of the last case are the largest products."""
LARGEST = CASES[-1]
ZERO_POINT = 7


def is_exact(format: Format, case: tuple[int, int, int, float], engine: Engine, pool: Pool) -> bool:
    """Whether a linear gives the exact integers."""
    tokens, columns, rows, density = case
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (tokens, columns))
    w = rng.integers(-128, 128, (rows, columns)) * (rng.random((rows, columns)) < density)
    if case == LARGEST:
        x[:], w[:] = 255, -128
    steps, source = linear_input(x, ZERO_POINT, format, engine.isa)
    if format not in DOTS:
        codes, source = source, Buffer("wide", columns, 4)
        words: dict[str, Word] = {"rows": columns, "input": codes, "output": source, "scale": 1.0}
        steps.append(Step(catalog.other("expand"), words, "wide"))
    packed = pack(w.astype(np.int8), format, ZERO_POINT, signed_codes=engine.isa.signed_codes)
    target = Buffer("y", rows, 4)
    words = linear_words(w, packed, source) | {"output": target}
    steps.append(Step(catalog.linear(format, Epilogue(integer=True)), words, "y"))
    found = run_steps(steps, [target], np.ones((1, tokens), np.bool_), engine, pool)["y"]
    return np.array_equal(found.reshape(tokens, rows), (x - ZERO_POINT) @ w.T)


def wrong(isa: Isa) -> list[str]:
    """Formats and cases whose sums are not the exact integers."""
    engine = Engine(isa, None)
    pool = Pool(engine, 2)
    formats = [format for format in FORMATS if isa.has_dot or format not in DOTS]
    return [
        f"{format} {case}"
        for format in formats
        for case in CASES
        if not is_exact(format, case, engine, pool)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", default="", choices=("", *ISAS))
    parser.add_argument("--quick", action="store_true", help="Measure no rates.")
    options = parser.parse_args()
    failed, asked = False, (options.isa,) if options.isa else NAMES
    print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    for isa in ISAS.values():
        if isa.name not in asked:
            continue
        if why := obstacle(isa.name):
            print(f"{isa.name}: {why}")
            continue
        found = wrong(isa)
        failed = failed or bool(found)
        print(f"{isa.name}: {', '.join(found) or 'every sum exact'}", flush=True)
        if not options.quick:
            print(measure(isa))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
