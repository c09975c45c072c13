"""Calls that reuse what earlier ones prepared give what a first call gives."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.runtime import recent
from sparsefx.backends.cpu.runtime.slabs import Cut
from sparsefx.backends.cpu.runtime.turn import Turn
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import padded_batch
from tests.programs import captured

SHAPES = [(1, 3), (2, 9), (1, 17), (5, 40), (12, 64), (3, 33), (1, 64), (16, 20)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [1, 3, 32])
def test_any_order_of_masks_gives_the_same_bits(
    threads: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "KEPT", kept)
    program = captured("bert-cls")
    batches = [padded_batch(program, *shape, seed) for seed in range(2) for shape in SHAPES]
    expected = [CpuTarget(threads=threads).lower(program)(**b)["logits"] for b in batches]
    compiled = CpuTarget(threads=threads).lower(program)
    order = [*range(len(batches))] * 4
    random.Random(0).shuffle(order)
    for number in order:
        assert torch.equal(compiled(**batches[number])["logits"], expected[number])


def test_what_is_kept_does_not_grow_with_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT", 2)
    program = captured("bert-cls")
    compiled = CpuTarget(threads=1).lower(program)
    for rows, tokens in SHAPES:
        compiled(**padded_batch(program, rows, tokens))
    assert 0 < len(compiled._fixed) <= 2 * 3  # ids, positions and types


def test_new_ids_behind_a_known_mask_are_read() -> None:
    program = captured("bert-cls")
    compiled = CpuTarget().lower(program)
    first = padded_batch(program, 2, 12)
    second = {**first, "input_ids": first["input_ids"].flip(1)}
    before = compiled(**first)["logits"]
    kept = before.clone()
    after = compiled(**second)["logits"]
    assert torch.equal(before, kept), "a result belongs to the caller"
    assert torch.equal(after, CpuTarget().lower(program)(**second)["logits"])
    assert not torch.equal(after, before)


def test_a_loaded_model_takes_callers_with_growing_batches_at_once(tmp_path: Path) -> None:
    program = captured("bert-cls")
    CpuTarget(threads=2).lower(program).save(tmp_path)
    batches = [padded_batch(program, 1 + n, 4 * (n + 1), n) for n in range(12)]
    expected = [load(tmp_path, threads=2)(**b)["logits"] for b in batches]
    model = load(tmp_path, threads=2)
    with ThreadPoolExecutor(6) as callers:
        for _ in range(5):
            found = callers.map(lambda batch: model(**batch)["logits"], batches)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_turn_that_another_thread_holds_is_free_in_a_forked_process() -> None:
    turn, held, over = Turn(), threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        with turn:
            os._exit(0)
    status = _status_within(child, seconds=10)
    over.set()
    holder.join()
    assert status == 0


def _status_within(child: int, seconds: float) -> int | None:
    """Exit status of a process, None when it is still waiting."""
    waiting = threading.Event()
    for _ in range(int(seconds * 50)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        waiting.wait(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


@pytest.mark.parametrize(
    ("lengths", "token_bytes", "expected"),
    [
        ([128] * 8, 20_000, [128] * 8),
        ([128] * 8, 10_000, [256] * 4),
        ([48] * 8, 20_000, [192, 192]),
        ([160, 40, 40, 40, 16], 20_000, [160, 160]),
        ([300, 16], 20_000, [304, 16]),
    ],
)
def test_slabs_are_small_where_activations_are_many_bytes(
    lengths: list[int], token_bytes: int, expected: list[int]
) -> None:
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    slabs = Cut(64, 2, token_bytes, by_distance=False).slabs(mask)
    assert [int(-(-slab.lengths // 16 * 16).sum()) for slab in slabs] == expected
    assert sorted(int(row) for slab in slabs for row in slab.rows) == list(range(len(lengths)))
