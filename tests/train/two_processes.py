"""Two processes that train together, for tests.

Each is a fork of a server that has only imported: a fork of a process that has computed can wait
for ever on a lock that one of its threads held.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from sparsefx.errors import SparsefxError
from sparsefx.frontend.capture import capture
from sparsefx.masks import find_masks
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train.events import Event
from sparsefx.train.session import Session
from tests.train import tiny_run

RECIPE = """
name: tiny
seed: 5
data: {max_length: 16, batch_size: 7}
stages:
- name: one
  teacher: model
  pipeline:
  - set-dropout
  - magnitude-prune{sparsity=0.8,end=60%,frequency=2}
  - distill{logits=1,hidden=1}
  training: {steps: 9, data: labelled+unlabelled, precision: fp32, schedule: {kind: constant}}
  after: strip-distillation
"""
"""The last of the 12 batches of an epoch, drawn as the sixth one, has three examples."""
Listener = Callable[[Event], None]
Make = Callable[[Path], Any]
"""To be found by its name in a module, as what is pickled has to be."""
PATIENCE = 120.0
"""Seconds after which a process that has not ended writes down where it is."""
servers: Any = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload([__name__])


def session(folder: Path, recipe: str = RECIPE, layers: int = 1, **options: Any) -> Session:
    given = tiny_run.data(unlabelled=20)
    options = {"checkpoint_seconds": 1e9, "patience_seconds": 60.0, **options}
    return Session(Recipe.parse(recipe), program(layers), given, folder, device="cpu", **options)


@functools.cache
def program(layers: int = 1) -> Program:
    """A BERT of few layers."""
    model = tiny_run.model(num_hidden_layers=layers)
    return capture(model, tiny_run.example_inputs(tiny_run.data()))


def work(rank: int, port: int, folder: Path, make: Make) -> None:
    """Be one of two processes, and leave the message of an error in the folder."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    hung = (folder / f"hung-{rank}").open("w", encoding="utf-8")
    faulthandler.dump_traceback_later(PATIENCE, file=hung)
    try:
        make(folder).run()
    except SparsefxError as error:
        (folder / f"error-{rank}").write_text(str(error), encoding="utf-8")
        os._exit(2)
    os._exit(0)


def start(folder: Path, *makes: Make) -> list[Any]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        servers.Process(target=work, args=(rank, port, folder, makes[rank % len(makes)]))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    return both


def run_two(folder: Path, *makes: Make) -> list[int]:
    both = start(folder, *makes or (session,))
    end = time.monotonic() + PATIENCE + 10
    for process in both:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
    hung = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("hung-*"))]
    assert not any(hung), "\n".join(["a process did not end:", *hung, *errors(folder)])
    return [process.exitcode for process in both]


def errors(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("error-*"))]


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    return [line for line in lines if "loss" in line]


def result(folder: Path, stage: str) -> Program:
    return Program.load(next(folder.glob(f"stages/*-{stage}/program")))


def assert_stage_close(folder: Path, other: Path) -> None:
    """Hold the first stage to be the same to rounding: weights, masks and every step."""
    ours, theirs = result(folder, "one"), result(other, "one")
    for name, tensor in theirs.named_tensors().items():
        torch.testing.assert_close(ours.tensor(name), tensor, rtol=0, atol=2e-6, msg=name)
    for site in find_masks(theirs):
        assert torch.equal(ours.tensor(site.mask), theirs.tensor(site.mask)), site.mask
    for one, another in zip(steps(folder), steps(other), strict=True):
        assert one["sparsity"] == another["sparsity"]
        for key in ("step", "loss", "gradient_norm", "learning_rate"):
            assert one[key] == pytest.approx(another[key], rel=1e-5), (one["step"], key)
        assert one["terms"] == pytest.approx(another["terms"], rel=1e-5, abs=1e-6)


def accumulated(parts: int, recipe: str = RECIPE) -> str:
    return recipe.replace("precision: fp32", f"precision: fp32, accumulate: {parts}")
