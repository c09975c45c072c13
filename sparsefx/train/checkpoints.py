"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A checkpoint is written under another name and then renamed, so a process that is killed leaves the
earlier ones alone. Its manifest holds the SHA-256 of its files: one that a crash of the machine cut
off is passed over for the one before it. The last two are kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsefx.errors import ArtifactError
from sparsefx.storage.files import file_hash, saving, write_json

__all__ = ["Checkpoint", "CheckpointClock", "Checkpoints"]

logger = logging.getLogger(__name__)

_KEPT = 2  # the newest, and the one before it should that be broken
_SHARE = 1 / 20  # of the time, for checkpoints: those of a model of base size take seconds
_STATE, _TENSORS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        tensors: All tensors by name.
        state: Everything else, as plain JSON data.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointClock:
    """Says when the next checkpoint is due.

    Args:
        seconds: Time between checkpoints, more where they take more than a twentieth of it; 0 for
            one whenever it is asked.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.perf_counter() + seconds

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.perf_counter() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Take the time of one, which begins and ends here."""
        began = time.perf_counter()
        yield
        now = time.perf_counter()
        rest = max(self._seconds, (now - began) / _SHARE) if self._seconds else 0.0
        self._next = now + rest


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: Where they lie; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove the oldest ones.

        Returns:
            Its folder; when there is one for this step already, that one stays.
        """
        final = self.folder / f"step-{checkpoint.step:08d}"
        if final.exists():
            return final
        work = self.folder / f".{final.name}-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
        try:
            with saving(final):
                save_file(tensors, work / _TENSORS)
            write_json(work / _STATE, {"step": checkpoint.step, **checkpoint.state})
            hashes = {name: file_hash(work / name) for name in (_TENSORS, _STATE)}
            write_json(work / _MANIFEST, hashes)
            os.replace(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # half a checkpoint fills a disk still more
        self._remove_old()
        return final

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; None when there is none at all.

        Raises:
            ArtifactError: There are some, but all are cut or altered.
        """
        broken = []
        for folder in reversed(self.folders()):
            try:
                return _read(folder)
            except ArtifactError as error:
                logger.warning("%s; trying the one before it", error)
                broken.append(folder.name)
        if broken:
            raise ArtifactError(
                f"none of the checkpoints {', '.join(broken)} is whole",
                who="resume",
                where=str(self.folder),
                hint="remove this folder to train the stage from its beginning",
            )
        return None

    def folders(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.exists() else []

    def _remove_old(self) -> None:
        for folder in self.folders()[:-_KEPT]:
            shutil.rmtree(folder)
        for folder in self.folder.glob(".step-*"):
            shutil.rmtree(folder)


def _read(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name in (_TENSORS, _STATE):
            if file_hash(folder / name) != manifest[name]:
                raise ArtifactError(f"{name} was cut or altered", who="resume", where=str(folder))
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return Checkpoint(state["step"], load_file(folder / _TENSORS), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"the checkpoint cannot be read: {error}", who="resume", where=str(folder)
        ) from error
