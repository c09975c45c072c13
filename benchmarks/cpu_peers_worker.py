"""One engine of `cpu_peers.py` in its own process: reads requests as lines, answers with seconds.

Runs in the environment of the engine; needs numpy and the engine alone. Protocol, JSON lines:

    <- {"lengths": [128], "padded": 128, "seed": 0}      one batch
    -> {"seconds": 0.0123, "cpu": 0.0245}                wall and processor time of one run
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Batch = dict[str, Any]
Runner = Callable[[Batch], Any]


def make_batch(lengths: list[int], padded: int, seed: int) -> Batch:
    """Token ids with padding at the end, as int64 arrays."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, 30000, (len(lengths), padded))
    mask = (np.arange(padded)[None] < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def openvino(path: str, threads: int, precision: str = "") -> Runner:
    """OpenVINO, one stream; an int8 model keeps the precision it chooses for the rest."""
    ov: Any = importlib.import_module("openvino")
    core = ov.Core()
    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
    return lambda batch: request.infer(batch)


def onnxruntime(path: str, threads: int) -> Runner:
    """ONNX Runtime, CPU provider."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch)


def deepsparse(path: str, threads: int) -> Runner:
    """DeepSparse: static shapes, one engine for each.

    It writes the shapes into the model's file, so each engine is made from a copy that goes again:
    for the lengths of MRPC they would fill gigabytes.
    """
    deepsparse: Any = importlib.import_module("deepsparse")
    engines: dict[tuple[int, ...], Any] = {}
    copies = tempfile.TemporaryDirectory()

    def run(batch: Batch) -> Any:
        shape = tuple(batch["input_ids"].shape)
        if shape not in engines:
            copy = shutil.copy(path, f"{copies.name}/{'x'.join(map(str, shape))}.onnx")
            engines[shape] = deepsparse.Engine(
                copy, batch_size=shape[0], num_cores=threads, input_shapes=[list(shape)] * 3
            )
            os.unlink(copy)
        return engines[shape].run([np.ascontiguousarray(v) for v in batch.values()])

    return run


def sparsefx(path: str, threads: int, isa: str) -> Runner:
    """The cpu target of sparsefx."""
    import torch

    from sparsefx import Program
    from sparsefx.backends.cpu.target import CpuTarget

    torch.set_num_threads(1)
    compiled = CpuTarget(threads=threads, isa=isa).compile(Program.load(path))

    def run(batch: Batch) -> Any:
        return compiled(**{name: torch.from_numpy(value) for name, value in batch.items()})

    return run


ENGINES: dict[str, Callable[[str, int, str], Runner]] = {
    "openvino": lambda path, threads, isa: openvino(path, threads),
    "openvino_bf16": lambda path, threads, isa: openvino(path, threads, "bf16"),
    "openvino_f32": lambda path, threads, isa: openvino(path, threads, "f32"),
    "onnxruntime": lambda path, threads, isa: onnxruntime(path, threads),
    "deepsparse": lambda path, threads, isa: deepsparse(path, threads),
    "sparsefx": sparsefx,
}


def main() -> None:
    engine, path, threads, isa = sys.argv[1:5]
    run = ENGINES[engine](path, int(threads), isa)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        batch = make_batch(**json.loads(line))
        cpu, start = time.process_time(), time.perf_counter()
        run(batch)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
