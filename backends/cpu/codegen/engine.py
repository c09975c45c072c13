"""From IR text to callable machine code: optimise, compile, cache, load.

One engine serves the process. LLVM contexts are not thread-safe, so everything that touches LLVM
happens under one lock; the code it returns runs without it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.machine.private import cache_folder, read_private, write_private

__all__ = ["Engine", "assembly", "shared_engine"]

_LOCK = threading.RLock()
_KEPT: list[Any] = []
"""Code lives as long as the process: a worker thread may still be inside it."""


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
        self._offered: dict[str, bytes] = {}
        self._loaded: set[str] = set()
        self._addresses: dict[str, int] = {}
        self._engine: Any = None

    def address(self, name: str, text: str) -> int:
        """Entry point of the function `name`, compiled on first use.

        Args:
            name: Symbol; it must say everything that the text depends on.
            text: Its IR.
        """
        with _LOCK:
            if name not in self._addresses:
                key, code = self.object(text)
                if key not in self._loaded:
                    self._load(code)
                    self._loaded.add(key)
                self._addresses[name] = self._engine.get_function_address(name)
            return self._addresses[name]

    def object(self, text: str) -> tuple[str, bytes]:
        """The object of an IR module and the key that stands for all it depends on."""
        with _LOCK:
            key = _key(text, self.isa)
            code = self._offered.get(key) or read_private(self._folder, f"{key}.o")
            if code is None:
                module, machine = _optimised(text, self.isa)
                code = bytes(machine.emit_object(module))
                self.compiled += 1
                write_private(self._folder, f"{key}.o", code)
            return key, code

    def offer(self, objects: Mapping[str, bytes]) -> None:
        """Take objects, by key, that are known to come from this user."""
        with _LOCK:
            self._offered.update(objects)

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


@cache
def shared_engine(isa: Isa) -> Engine:
    """The engine of this process for `isa`."""
    return Engine(isa, cache_folder())
