"""The cpu target beside dense and sparse CPU engines: one run, interleaved, same inputs.

    python benchmarks/cpu_peers.py --folder build/cpu_peers --json cpu_peers.json

It makes an environment with the peers (OpenVINO with NNCF, ONNX Runtime, DeepSparse 1.8.0) under
`--folder`, says what did not install, and runs every engine in a process of its own. In each round
every engine runs each batch once, in turn, so that the others' weights have pushed its own out of
the caches, and whatever else the machine does meets all alike. Medians and the spread between the
quartiles are of wall-clock time; the smallest processor time is given beside them, because it
changes least on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = {
    "openvino": ["openvino", "nncf", "numpy"],
    "onnxruntime": ["onnxruntime", "onnx", "numpy"],
    "deepsparse": ["deepsparse==1.8.0"],
}
# Lengths of sentence pairs like those of MRPC: mean 53, from 20 to 100.
PAIRS = [38, 41, 44, 47, 49, 51, 52, 53, 55, 57, 59, 61, 64, 68, 73, 86]
WORKLOADS: dict[str, dict[str, Any]] = {
    "1x32": {"lengths": [32], "padded": 32},
    "1x64": {"lengths": [64], "padded": 64},
    "1x128": {"lengths": [128], "padded": 128},
    "1x384": {"lengths": [384], "padded": 384},
    "16x128": {"lengths": [128] * 16, "padded": 128},
    "16 pairs": {"lengths": PAIRS, "padded": max(PAIRS)},
}


@dataclass
class Engine:
    """A process that runs one model on request."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, python: Path, kind: str, model: Path, threads: int) -> Engine | None:
        """Start it; None, with a word on stderr, if it does not come up."""
        command = [str(python), str(HERE / "cpu_peers_worker.py"), kind, str(model), str(threads)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)} if kind == "sparsefx" else None,
        )
        engine = cls(name, process)
        if engine._answer() is None:
            print(f"{name}: does not start", file=sys.stderr)
            return None
        return engine

    def run(self, batch: dict[str, Any]) -> dict[str, float] | None:
        """One run: wall-clock and processor seconds; None once it has failed."""
        if self.process.poll() is not None or self.process.stdin is None:
            return None
        self.process.stdin.write(json.dumps({**batch, "seed": 0}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float] | None:
        """The next line that is an answer; engines print banners too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        return None

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()


def environment(folder: Path, name: str) -> Path | None:
    """The python of a peer's environment, made unless it is there; None if it does not install."""
    place = folder / f"env-{name}"
    python = place / "bin" / "python"
    if (place / "installed").exists():
        return python
    venv.create(place, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-q", *PEERS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: not installed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    (place / "installed").touch()
    return python


def start_all(folder: Path, size: str, threads: int) -> list[Engine]:
    """Every engine that can be had, ours first."""
    sys.path.insert(0, str(HERE.parent))
    from benchmarks import cpu_peers_models as models

    found: list[Engine | None] = []
    ours = Path(sys.executable)
    variants: list[tuple[float, models.Pattern]] = [(0.9, "unstructured")]
    if size == "base":
        variants += [(0.9, "1x4"), (0.95, "1x4")]
    for sparsity, pattern in variants:
        floats, integers = models.programs(folder, size, sparsity, pattern)
        label = f"sparsefx {round(100 * sparsity)} % {pattern}"
        found.append(Engine.start(f"{label} int8", ours, "sparsefx", integers, threads))
        if pattern == "unstructured":
            found.append(Engine.start(f"{label} fp32", ours, "sparsefx", floats, threads))
    source = models.onnx(folder / f"{size}-90.onnx", size, 0.9)
    for kind in PEERS:
        python = environment(folder, kind)
        if python is None:
            continue
        label = f"{kind} 90 % unstructured fp32" if kind == "deepsparse" else f"{kind} fp32"
        found.append(Engine.start(label, python, kind, source, threads))
        if kind == "deepsparse":
            continue
        target = folder / f"{size}-{kind}-int8{'.xml' if kind == 'openvino' else '.onnx'}"
        if not target.exists():
            script = [str(python), str(HERE / "cpu_peers_prepare.py")]
            subprocess.run([*script, kind, str(source), str(target)], check=True)
        found.append(Engine.start(f"{kind} int8", python, kind, target, threads))
    return [engine for engine in found if engine is not None]


def measure(
    engines: list[Engine], batches: dict[str, dict[str, Any]], rounds: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Runs by workload and engine; the first of each is left out."""
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for workload, batch in batches.items():
        table: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
        for number in range(rounds + 1):
            for engine in engines:
                answer = engine.run(batch)
                if answer is not None and number:
                    table[engine.name].append(answer)
        results[workload] = {name: runs for name, runs in table.items() if runs}
    return results


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Median, quartiles and extremes in milliseconds."""
    wall = sorted(1e3 * run["seconds"] for run in runs)
    quartiles = statistics.quantiles(wall, n=4) if len(wall) > 1 else [wall[0]] * 3
    return {
        "median": round(quartiles[1], 3),
        "low": round(quartiles[0], 3),
        "high": round(quartiles[2], 3),
        "smallest": round(wall[0], 3),
        "smallest cpu": round(min(1e3 * run["cpu"] for run in runs), 3),
        "runs": len(runs),
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per engine, `median (quartiles), smallest processor time` in ms."""
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    lines = [
        "| engine | " + " | ".join(results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for name in names:
        cells = []
        for found in results.values():
            s = found.get(name)
            text = "-"
            if s is not None:
                spread = f"{s['low']:.1f}-{s['high']:.1f}"
                text = f"{s['median']:.1f} ({spread}), {s['smallest cpu']:.1f}"
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/cpu_peers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=["base", "minilm"], default="base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    engines = start_all(options.folder.resolve(), options.model, options.threads)
    runs = measure(engines, {n: WORKLOADS[n] for n in options.workloads}, options.rounds)
    for engine in engines:
        engine.stop()
    results = {w: {n: summary(r) for n, r in found.items()} for w, found in runs.items()}
    report = {
        "command": " ".join(sys.argv),
        "machine": platform.platform(),
        "threads": options.threads,
        "model": options.model,
        "results": results,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
