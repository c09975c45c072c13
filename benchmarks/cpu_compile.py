"""What the cpu target takes to compile and load BERT-base, and the memory of a loaded model.

python benchmarks/cpu_compile.py --folder build/cpu_peers

Each line is a process of its own: wall-clock and processor seconds from the saved files to the
first result of 1x128, how much of the processor time imports take, and the memory that stays
beyond that of an interpreter with numpy. "cold" has an empty cache of objects and rates; "cached"
has one; "saved" loads what `save` wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
_SHAPE = (1, 128)


def resident_megabytes() -> float:
    """Memory of this process that is in RAM; pages of mapped files count."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def batch() -> dict[str, Any]:
    """Token ids without padding."""
    ids = np.random.default_rng(0).integers(1000, 30000, _SHAPE)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}


def compiled(folder: str) -> float:
    """Lower a saved Program and run it; return when all was imported, in processor seconds."""
    import torch

    from sparsefx import Program
    from sparsefx.backends.cpu.target import CpuTarget

    imported = time.process_time()
    torch.set_num_threads(1)
    model = CpuTarget().compile(Program.load(folder))
    model(**{name: torch.from_numpy(value) for name, value in batch().items()})
    return imported


def saved(folder: str) -> float:
    """Load a saved model and run it; return when all was imported, in processor seconds."""
    from sparsefx.backends.cpu.artifact import load

    imported = time.process_time()
    load(folder)(**batch())
    return imported


def write(folder: str, target: str) -> float:
    """Lower a saved Program and save it; return when all was imported, in processor seconds."""
    from sparsefx import Program
    from sparsefx.backends.cpu.target import CpuTarget

    imported = time.process_time()
    CpuTarget().compile(Program.load(folder)).save(target)
    return imported


def child(what: str, *arguments: str) -> None:
    """One measurement, printed as JSON."""
    before = resident_megabytes()
    wall, processor = time.perf_counter(), time.process_time()
    parts: dict[str, Callable[..., float]] = {"compiled": compiled, "saved": saved, "write": write}
    imported = parts[what](*arguments)
    figures = {
        "imports": imported - processor,
        "seconds": time.perf_counter() - wall,
        "processor seconds": time.process_time() - processor,
        "megabytes": resident_megabytes() - before,
        "torch imported": "torch" in sys.modules,
    }
    print(json.dumps(figures))


def run(label: str, cache: Path, *arguments: str) -> None:
    """One measurement in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    torch = "with torch" if found["torch imported"] else "without torch"
    print(
        f"{label:10s} {found['seconds']:6.2f} s, {found['processor seconds']:6.2f} s of processor "
        f"time ({found['imports']:.2f} s imports), {found['megabytes']:5.0f} MB more, {torch}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/cpu_peers"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    sys.path.insert(0, str(HERE.parent))
    from benchmarks import cpu_peers_models as models

    _, program = models.programs(options.folder.resolve(), "base", 0.9, "unstructured")
    with tempfile.TemporaryDirectory() as place:
        cache, target = Path(place) / "cache", str(Path(place) / "model")
        run("cold", cache, "compiled", str(program))
        run("cached", cache, "compiled", str(program))
        run("save", cache, "write", str(program), target)
        run("saved", cache, "saved", target)


if __name__ == "__main__":
    main()
