"""Files that only this user can have written: compiled objects, measured rates, a signing key.

Machine code is loaded from nowhere else. What is kept here may come from a folder that was copied
from another machine only if it carries a signature made with the key of this user.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import threading
from pathlib import Path

__all__ = ["cache_folder", "read_private", "sign", "write_private"]

_KEY = "key"


def cache_folder() -> Path | None:
    """Where compiled objects are kept: `$XDG_CACHE_HOME/sparsefx/cpu`, private to the user.

    None where neither that nor a home is known, as for a user of a container by number alone.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "sparsefx" / "cpu"


def read_private(folder: Path | None, name: str) -> bytes | None:
    """A file with a matching digest from a folder that only this user can write, else None."""
    if folder is None or not _is_private(folder):
        return None
    try:
        blob = (folder / name).read_bytes()
    except OSError:
        return None
    digest, content = blob[:32], blob[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_private(folder: Path | None, name: str, content: bytes) -> None:
    """Keep a file, unless there is no folder or others can write to it."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(folder):
            return
        draft = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
        draft.touch(mode=0o600)
        draft.write_bytes(hashlib.sha256(content).digest() + content)
        draft.replace(folder / name)
    except OSError:  # a full or read-only disk costs time, not correctness
        return


def sign(content: bytes) -> bytes | None:
    """32 bytes that only this user can make of `content`; None where no key can be kept."""
    folder = cache_folder()
    key = read_private(folder, _KEY)
    if key is None:
        write_private(folder, _KEY, secrets.token_bytes(32))
        key = read_private(folder, _KEY)
    return hmac.digest(key, content, "sha256") if key else None


def _is_private(folder: Path) -> bool:
    """Machine code is loaded only from a folder that nobody else can have written."""
    try:
        found = folder.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.getuid() and not found.st_mode & others
