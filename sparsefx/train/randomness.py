"""The random number generators of a process: seeding, saving and restoring them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["get_state", "left_as_it_is", "seed_everything", "seeded", "set_state", "stage_seed"]


def stage_seed(seed: int, stage: str) -> int:
    """Return the seed of a stage, below 2**32; it does not depend on the stages before."""
    return zlib.crc32(f"{seed}/{stage}".encode())


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python, which dropout and passes may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # what others may use is seeded as well
    random.seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` on the CPU and on ``device``; afterwards torch goes on as if not."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def left_as_it_is(device: torch.device) -> Iterator[None]:
    """Let what is called inside draw; afterwards all generators go on as if it had not."""
    tensors, plain = get_state(device)
    try:
        yield
    finally:
        set_state(tensors, plain, device)


def get_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all generators: torch's as tensors, the others as plain data."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy = [name, np.asarray(keys).tolist(), *rest]
    return tensors, {"python": random.getstate(), "numpy": numpy}


def set_state(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], device: torch.device
) -> None:
    """Restore what :func:`get_state` returned."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = plain["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
