"""From IR text to callable machine code: optimise, compile, cache, load.

One engine serves the process. LLVM contexts are not thread-safe, so everything that touches LLVM
happens under one lock; the code it returns runs without it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sparsefx.backends.cpu.isa import Isa

__all__ = ["Engine", "assembly", "cache_folder", "shared_engine"]

_LOCK = threading.RLock()
_KEPT: list[Any] = []
"""Code lives as long as the process: a worker thread may still be inside it."""


def cache_folder() -> Path:
    """Where compiled objects are kept: `$XDG_CACHE_HOME/sparsefx/cpu`, private to the user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparsefx" / "cpu"


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # inline assembly aborts the process without it


def _optimised(text: str, isa: Isa) -> tuple[Any, Any]:
    """The parsed, verified and optimised module, and its target machine."""
    import llvmlite.binding as llvm

    _initialise()
    # Emitters unroll and vectorise themselves; LLVM's own attempts only bloat their loops.
    machine = llvm.Target.from_triple(isa.triple).create_target_machine(
        cpu=isa.cpu, features=isa.flags, opt=3
    )
    module = llvm.parse_assembly(text)
    module.triple = isa.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    tuning.loop_unrolling = False
    tuning.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return module, machine


def assembly(text: str, isa: Isa) -> str:
    """Assembly of an IR module; works for every instruction set, also those of other machines."""
    with _LOCK:
        module, machine = _optimised(text, isa)
        return str(machine.emit_assembly(module))


class Engine:
    """Compiles IR for one instruction set and keeps the code alive.

    Args:
        isa: What to compile for; the host must have it.
        folder: Object cache; None keeps nothing on disk.
    """

    def __init__(self, isa: Isa, folder: Path | None) -> None:
        self.isa = isa
        self.compiled = 0
        self._folder = folder
        self._addresses: dict[str, int] = {}
        self._engine: Any = None

    def address(self, name: str, text: Callable[[], str]) -> int:
        """Entry point of the function `name`, compiled on first use.

        Args:
            name: Symbol; it must say everything that the text depends on.
            text: Gives the IR; called only if the function is not loaded yet.
        """
        with _LOCK:
            if name not in self._addresses:
                self._load(self._object(text()))
                self._addresses[name] = self._engine.get_function_address(name)
            return self._addresses[name]

    def _object(self, text: str) -> bytes:
        key = _key(text, self.isa)
        kept = _read_private(self._folder, key)
        if kept is not None:
            return kept
        module, machine = _optimised(text, self.isa)
        code = bytes(machine.emit_object(module))
        self.compiled += 1
        _write_private(self._folder, key, code)
        return code

    def _load(self, code: bytes) -> None:
        import llvmlite.binding as llvm

        _initialise()
        if self._engine is None:
            machine = llvm.Target.from_triple(self.isa.triple).create_target_machine()
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
            _KEPT.append(self._engine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()


def _key(text: str, isa: Isa) -> str:
    import llvmlite

    parts = (llvmlite.__version__, isa.triple, isa.cpu, isa.flags, text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_private(folder: Path | None, key: str) -> bytes | None:
    """A cached object with a matching digest from a folder that only this user can write."""
    if folder is None or not _is_private(folder):
        return None
    try:
        blob = (folder / f"{key}.o").read_bytes()
    except OSError:
        return None
    digest, code = blob[:32], blob[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write_private(folder: Path | None, key: str, code: bytes) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_private(folder):
        return
    draft = folder / f"{key}.{os.getpid()}.{threading.get_ident()}"
    draft.write_bytes(hashlib.sha256(code).digest() + code)
    draft.replace(folder / f"{key}.o")


def _is_private(folder: Path) -> bool:
    """Machine code is loaded only from a folder that nobody else can have written."""
    try:
        found = folder.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.getuid() and not found.st_mode & others


@cache
def shared_engine(isa: Isa) -> Engine:
    """The engine of this process for `isa`."""
    return Engine(isa, cache_folder())
