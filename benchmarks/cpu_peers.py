"""The cpu target beside dense and sparse CPU engines: one run, interleaved, same inputs.

    python benchmarks/cpu_peers.py --folder build/cpu_peers --json cpu_peers.json
    python benchmarks/cpu_peers.py --workloads 1x32 1x128 --engines sparsefx openvino --isa avx2

It makes an environment with the peers (OpenVINO with NNCF, ONNX Runtime, DeepSparse 1.8.0) under
`--folder`, says what did not install, and runs every engine in a process of its own. In each round
every engine runs each batch once, in changing order, so that the others' weights have pushed its
own out of the caches, and whatever else the machine does meets all alike. Medians and the spread
between the quartiles are of wall-clock time; the smallest processor time is given beside them,
because it changes least on a busy machine. The JSON file is written after each workload; it keeps
what other calls measured (other workloads, threads, instruction sets) and replaces what this call
measured again. DeepSparse compiles one engine for each shape: its two models take some 22 GB for
the lengths of MRPC, one of them half of that (`--engines`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PEERS = {
    "openvino": ["openvino", "nncf", "numpy"],
    "onnxruntime": ["onnxruntime", "onnx", "numpy"],
    "deepsparse": ["deepsparse==1.8.0"],
}
Lengths = list[int]
# Workload: lengths of the sequences of its batches, each padded to its longest.
WORKLOADS: dict[str, Callable[[], list[Lengths]]] = {
    "1x32": lambda: [[32]],
    "1x64": lambda: [[64]],
    "1x128": lambda: [[128]],
    "1x384": lambda: [[384]],
    "16x128": lambda: [[128] * 16],
    "MRPC dev": lambda: mrpc_lengths(16),
}
# Threads of an engine may spin for a while after its run, and would take a core from the next one.
_PAUSE = 0.1
# What limits each engine to an instruction set; ONNX Runtime has no such switch.
CAPS = {
    "avx512_vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "NM_ARCH": "avx512"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "NM_ARCH": "avx2"},
}


def mrpc_lengths(size: int) -> list[Lengths]:
    """Tokens of the pairs of MRPC's development split, in the order of the file."""
    from transformers import AutoTokenizer

    from benchmarks.glue import glue_folder
    from sparsefx.train.data.assets import minilm_folder
    from sparsefx.train.data.glue import load_glue

    examples = load_glue("MRPC", glue_folder(None)).split("test")
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokens = tokenizer(list(examples.texts), list(examples.pairs or ()), padding=False)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    return [lengths[first : first + size] for first in range(0, len(lengths), size)]


@dataclass
class Engine:
    """A process that runs one model on request."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls, name: str, python: Path, kind: str, model: Path, threads: int, isa: str
    ) -> Engine | None:
        """Start it; None, with a word on stderr, if it does not come up."""
        command = [str(python), str(HERE / "cpu_peers_worker.py"), kind, str(model), str(threads)]
        environment = {**os.environ, **CAPS.get(isa, {})}
        if kind == "sparsefx":
            environment["PYTHONPATH"] = str(HERE.parent)
        process = subprocess.Popen(
            [*command, isa],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        engine = cls(name, process)
        if engine._answer() is None:
            print(f"{name}: does not start", file=sys.stderr)
            return None
        return engine

    def run(self, batches: list[Lengths]) -> dict[str, float] | None:
        """One run of all batches: wall-clock and processor seconds; None once it has failed."""
        answers = [self._run(lengths) for lengths in batches]
        if None in answers:
            return None
        return {key: sum(found[key] for found in answers if found) for key in ("seconds", "cpu")}

    @property
    def ended(self) -> int | None:
        """Its exit status once it has ended, the negative of a signal that ended it."""
        return self.process.poll()

    def _run(self, lengths: Lengths) -> dict[str, float] | None:
        if self.process.poll() is not None or self.process.stdin is None:
            return None
        batch = {"lengths": lengths, "padded": max(lengths), "seed": 0}
        self.process.stdin.write(json.dumps(batch) + "\n")
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
        """End the process by ending its input, so that it removes what it wrote."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


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


@dataclass(frozen=True)
class Model:
    """A model in the form that one engine reads: made on demand, kept in the folder."""

    label: str
    kind: str
    make: Callable[[Path | None], Path]


def catalogue(folder: Path, size: str) -> Iterator[Model]:
    """Every engine with its model, ours first."""
    from benchmarks import cpu_peers_models as models

    def ours(sparsity: float, pattern: models.Pattern, part: int) -> Callable[[Path | None], Path]:
        return lambda _: models.programs(folder, size, sparsity, pattern)[part]

    def onnx(pattern: models.Pattern) -> Path:
        return models.onnx(folder / f"{size}-{pattern}-90.onnx", size, 0.9, pattern)

    def int8(kind: str, ending: str) -> Callable[[Path | None], Path]:
        def make(python: Path | None) -> Path:
            target = folder / f"{size}-{kind}-int8.{ending}"
            if not target.exists():
                script = [str(python), str(HERE / "cpu_peers_prepare.py"), kind]
                subprocess.run([*script, str(onnx("unstructured")), str(target)], check=True)
            return target

        return make

    yield Model("sparsefx 90 % unstructured int8", "sparsefx", ours(0.9, "unstructured", 1))
    yield Model("sparsefx 90 % unstructured fp32", "sparsefx", ours(0.9, "unstructured", 0))
    if size == "base":
        yield Model("sparsefx 90 % 1x4 int8", "sparsefx", ours(0.9, "1x4", 1))
        yield Model("sparsefx 95 % 1x4 int8", "sparsefx", ours(0.95, "1x4", 1))
    yield Model("openvino int8", "openvino", int8("openvino", "xml"))
    yield Model("openvino bf16", "openvino_bf16", lambda _: onnx("unstructured"))
    yield Model("openvino fp32", "openvino_f32", lambda _: onnx("unstructured"))
    yield Model("onnxruntime int8", "onnxruntime", int8("onnxruntime", "onnx"))
    yield Model("onnxruntime fp32", "onnxruntime", lambda _: onnx("unstructured"))
    yield Model("deepsparse 90 % unstructured fp32", "deepsparse", lambda _: onnx("unstructured"))
    if size == "base":
        yield Model("deepsparse 90 % 1x4 fp32", "deepsparse", lambda _: onnx("1x4"))


def start_all(options: argparse.Namespace) -> Iterator[Engine]:
    """Every engine that was asked for and can be had."""
    folder = options.folder.resolve()
    for model in catalogue(folder, options.model):
        if not any(part in model.label for part in options.engines):
            continue
        peer = model.kind.partition("_")[0]
        python = Path(sys.executable) if peer == "sparsefx" else environment(folder, peer)
        if python is None:
            continue
        path = model.make(python)
        for threads in options.threads:
            label = model.label + (f", {threads} threads" if len(options.threads) > 1 else "")
            engine = Engine.start(label, python, model.kind, path, threads, options.isa)
            if engine is not None:
                yield engine


def measure(
    engines: list[Engine], batches: list[Lengths], rounds: int, order: random.Random
) -> dict[str, list[dict[str, float]]]:
    """Runs by engine, after a warm-up; the order changes from round to round."""
    runs: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
    for engine in engines:
        _warm_up(engine, batches)
    for _ in range(rounds):
        for engine in order.sample(engines, len(engines)):
            time.sleep(_PAUSE)
            answer = engine.run(batches)
            if answer is not None:
                runs[engine.name].append(answer)
    return {name: found for name, found in runs.items() if found}


def _warm_up(engine: Engine, batches: list[Lengths]) -> None:
    """Ten runs, or one second of them: engines that adapt to the machine do it here."""
    time.sleep(_PAUSE)
    spent = 0.0
    for _ in range(10):
        answer = engine.run(batches)
        spent += answer["seconds"] if answer else 1.0
        if spent > 1.0:
            return


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
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


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
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


def keep(path: Path, section: dict[str, Any]) -> None:
    """Put a section into the JSON file; what it measured again is replaced, engine by engine."""
    from sparsefx.storage.files import write_json

    sections = json.loads(path.read_text())["sections"] if path.exists() else []
    same = ("machine", "model", "isa")
    for known in sections:
        if all(known[key] == section[key] for key in same):
            for workload, found in section["results"].items():
                known["results"].setdefault(workload, {}).update(found)
            break
    else:
        sections.append(section)
    write_json(path, {"sections": sections})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/cpu_peers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=["base", "minilm"], default="base")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", choices=["native", *CAPS], default="native")
    parser.add_argument("--engines", nargs="+", default=[""], help="parts of names, e.g. int8")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    return parser.parse_args()


def main() -> None:
    from sparsefx.instruments.timing import machine

    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    engines = list(start_all(options))
    section: dict[str, Any] = {
        "machine": machine().partition(",")[0] + f", {os.cpu_count()} cores",
        "model": options.model,
        "isa": options.isa,
        "results": {},
    }
    order = random.Random(0)
    for workload in options.workloads:
        found = measure(engines, WORKLOADS[workload](), options.rounds, order)
        section["results"][workload] = {
            name: {**summary(runs), "command": " ".join(sys.argv)} for name, runs in found.items()
        }
        if options.json:
            keep(options.json, section)
        for engine in [each for each in engines if each.ended is not None]:
            print(f"{engine.name}: ended ({engine.ended}) at {workload}", file=sys.stderr)
            engines.remove(engine)
    for engine in engines:
        engine.stop()
    print(f"{section['machine']}, {options.model}, {options.isa}, {options.rounds} rounds")
    print(table(section["results"]))


if __name__ == "__main__":
    main()
