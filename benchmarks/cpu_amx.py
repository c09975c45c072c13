"""Whether AMX works on this machine, and what its kernels take beside the others.

python benchmarks/cpu_amx.py --json cpu_amx.json

Asks for permission, compares linears and attention on tiles with exact results in a process of its
own, measures the machine's rates, then times attention, and linears of BERT-base in every format,
weights cold, one core. The last column says what the calibrated model would choose: a line where it
is not among the fastest shows what to mend. It takes a minute or two on an idle machine.
`--isa amx_bf16` does the same for a CPU with AMX-BF16, and its linears on bf16.
`--isa amx_emulated --quick` shows the form of the output anywhere; its times mean nothing.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparsefx.backends.cpu.lowering.costs import choose_format
from sparsefx.backends.cpu.machine import isa as isas
from sparsefx.backends.cpu.machine.amx_host import ask_permission, child_verdict
from sparsefx.backends.cpu.machine.isa import ISAS, Isa
from sparsefx.backends.cpu.measure.rates import (
    BUILT_IN,
    Rates,
    attention_seconds,
    linear_seconds,
    measure,
)
from sparsefx.backends.cpu.plan.weights import Format
from sparsefx.storage.files import write_json

FORMATS: tuple[Format, ...] = ("quads", "blocks", "dense_i8", "masked_amx", "dense_amx")
PATTERNS = (("unstructured", 0.05), ("unstructured", 0.1), ("unstructured", 0.2))
GROUPED = (("1x4", 0.05), ("1x4", 0.1), ("1x4", 0.2))
SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (16, 32, 128, 256)
LENGTHS = (32, 128, 384)


def weight(shape: tuple[int, int], pattern: str, density: float) -> NDArray[np.int8]:
    """Random int8 weights with random zeros, single or in aligned groups of four."""
    rng = np.random.default_rng(0)
    rows, columns = shape
    group = 4 if pattern == "1x4" else 1
    kept = np.repeat(rng.random((rows, columns // group)) < density, group, axis=1)
    return (rng.integers(1, 127, shape) * kept).astype(np.int8)


def timed(
    isa: Isa, rates: Rates, shape: tuple[int, int], case: tuple[str, float], tokens: int
) -> dict[str, Any]:
    """Microseconds of one linear in every format, and what the model would choose."""
    matrix = weight(shape, *case)
    times = {f: 1e6 * linear_seconds(matrix, f, isa, tokens) for f in FORMATS}
    chosen = choose_format(matrix, isa, rates).format
    return {"shape": shape, "pattern": case, "tokens": tokens, "us": times, "chosen": chosen}


def attention_times(isa: Isa, tokens: int) -> dict[str, float]:
    """Microseconds of a head of 64 channels with each kernel."""
    kinds = ("attention_i8", "attention_amx")
    return {kind: 1e6 * attention_seconds(kind, isa, tokens) for kind in kinds}


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    (rows, columns), (pattern, density), times = found["shape"], found["pattern"], found["us"]
    fastest = min(times.values())
    cells = "".join(f"{time:11.1f}{'*' if time == fastest else ' '}" for time in times.values())
    share = times[found["chosen"]] / fastest
    name = f"{rows}x{columns} {density:.0%} {pattern}"
    return f"{name:26s}{found['tokens']:5d}{cells}  {found['chosen']} ({share:.2f}x the fastest)"


def rates_table(rates: Rates) -> str:
    """Measured rates beside those that are built in."""
    formats = ("quad", "block", "group", "tile", "masked_tile", "row")
    short = ("short_nonzero", "short_channel", "short_tile", "peak_short")
    names = (*formats, *short, "attention", "attention_tiles", "peak", "peak_tiles")
    lines = [f"{n:16s}{getattr(rates, n):10.2f}{getattr(BUILT_IN, n):10.2f}" for n in names]
    return "\n".join(["rate              measured  built in", *lines])


def usable(isa: Isa) -> bool:
    """Print whether the machine, the kernel and the self-check admit an instruction set."""
    lacking = isas.missing_features(isa.name)
    print("lacks " + ", ".join(lacking) if lacking else f"has every feature of {isa.name}")
    if lacking:
        return False
    if isa.tiles == "hardware":
        refused = ask_permission()
        print(f"permission: {refused or 'given'}")
        if refused:
            return False
    verdict, _ = child_verdict(isa)
    print(f"self-check: {verdict or 'every product exact'}")
    return not verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", default="amx", choices=[i.name for i in ISAS.values() if i.tiles])
    parser.add_argument("--quick", action="store_true", help="One small linear, built-in rates.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    isa = next(found for found in ISAS.values() if found.name == options.isa)
    print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    if not usable(isa):
        return 1
    rates = BUILT_IN if options.quick else measure(isa)
    print(rates_table(rates))
    shapes, tokens = (((32, 64),), (16,)) if options.quick else (SHAPES, TOKENS)
    lengths = tokens if options.quick else LENGTHS
    cases = PATTERNS[:1] if options.quick else (*PATTERNS, *GROUPED)
    attention = {str(count): attention_times(isa, count) for count in lengths}
    for length, times in attention.items():
        listed = ", ".join(f"{kind} {time:.1f}" for kind, time in times.items())
        print(f"attention, {length} tokens, us per head of 64 channels: {listed}", flush=True)
    head = "".join(f"{name:>12s}" for name in FORMATS)
    print(f"{'microseconds, one core':26s}{'toks':>5s}{head}  chosen by the model")
    results = []
    for shape, case, count in product(shapes, cases, tokens):
        results.append(timed(isa, rates, shape, case, count))
        print(line(results[-1]), flush=True)
    if options.json:
        report = {"isa": isa.name, "rates": asdict(rates), "linears": results}
        report["attention"] = attention
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
