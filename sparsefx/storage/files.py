"""Folders of files that are written whole or not at all, and read only if nothing was altered."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sparsefx.errors import ArtifactError

_PART = ".part"
_AGAIN = "copy the whole folder again, or save it again"

__all__ = [
    "check_files",
    "check_hash",
    "file_hash",
    "read_json",
    "saving",
    "take_blocks",
    "take_place",
    "whole_file",
    "write_json",
    "write_text",
]


def take_place(work: Path, folder: Path, old: Path) -> None:
    """Move ``work`` to ``folder``; what was there goes back when that fails, and else away."""
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    try:
        os.replace(work, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_files(manifest: Path, version: int, names: Iterable[str], missing: str) -> None:
    """Check the files beside a manifest: their format's version, and their hashes.

    Args:
        manifest: A JSON file with ``format``, ``sha256`` (of each file by name) and ``sparsefx``.
        version: The format that can be read.
        names: The files.
        missing: What it means if there is no manifest.

    Raises:
        ArtifactError: A file is missing, cut, altered or of another version.
    """
    found = read_json(manifest, missing)
    if found.get("format") != version:
        raise ArtifactError(
            f"format {found.get('format')!r}; this version reads {version}",
            who="load",
            where=str(manifest),
            hint=f"it was written by sparsefx {found.get('sparsefx')}",
        )
    hashes = found.get("sha256")
    for name in names:
        check_hash(manifest.parent / name, hashes.get(name) if isinstance(hashes, dict) else None)


def check_hash(path: Path, expected: str | None) -> None:
    """Raise ArtifactError unless the file is there and has this SHA-256."""
    if not path.exists():
        raise ArtifactError("the file is missing", who="load", where=str(path), hint=_AGAIN)
    if file_hash(path) != expected:
        raise ArtifactError(
            "the file was cut or altered: its SHA-256 is not the one in the manifest",
            who="load",
            where=str(path),
            hint=_AGAIN,
        )


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file that then takes the place of `path`; nothing does on an error.

    Killed in between, what was at `path` is still there; what was written beside it goes when the
    same path is next written. A device or pipe is written as it is: a file must not take its place.

    Raises:
        OSError: It cannot be written; its file is `path`.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}-*{_PART}"):
        _remove_if_left(left)
    beside = path.with_name(f".{path.name}-{os.getpid()}{_PART}")
    with _named(path, beside), _held(beside):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, beside: Path) -> Iterator[None]:
    """Name in an error the file that was asked for, not the one that is written beside it."""
    try:
        yield
    except OSError as error:
        if str(error.filename) != str(beside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Within this context others can see that a file is being written.

    The system takes the lock off when the process ends, however it ends, and knows of it on other
    machines that share the storage; the number of a process says nothing there.
    """
    with path.open("ab") as file:
        with suppress(OSError):  # some storage has no locks: then nothing is ever removed on it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_if_left(path: Path) -> None:
    """Remove what was written beside a file, unless somebody still writes it."""
    with suppress(OSError), path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a full or faulty disk into the OSError that it is.

    Raises:
        OSError: With the number of the system's error, and ``path`` as its file.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def take_blocks(file: BinaryIO, size: int) -> None:
    """Make a new, open file `size` bytes long and take its place on the disk, on every system.

    Raises:
        OSError: The disk has no room. It may be raised only when the file is closed.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(1 << 20)
    for left in range(size, 0, -len(block)):
        file.write(block[:left])


def write_text(path: Path, text: str) -> None:
    """Write a text, in a new folder if need be; the file is either the old or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON; the file is either the old or the whole new one."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object; `missing` says what it means if the file is not there."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"the file is missing: {missing}", who="load", where=str(path), hint=_AGAIN
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"not JSON: {error}", who="load", where=str(path), hint=_AGAIN
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError("not a JSON object", who="load", where=str(path), hint=_AGAIN)
    return value
