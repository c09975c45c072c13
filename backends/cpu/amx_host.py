"""Whether this process may use AMX: features, the kernel's permission, and a self-check.

Linux gives the state of tiles only to processes that ask for it; permission holds for all threads,
and is asked for here, once in a process, before any tile is touched. No release of sparsefx was
ever run on a CPU with AMX before it meets one, so the kernels prove themselves first: a child
process, which may crash, multiplies on tiles and compares with exact integers (`amx_check`).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from functools import cache

import sparsefx
from sparsefx.backends.cpu.isa import ISAS, Isa, missing_features
from sparsefx.backends.cpu.private import cache_folder, read_private, write_private

__all__ = ["PASSED", "ask_permission", "child_verdict", "refusal"]

PASSED = "exact"
"""What the child says if all products were."""

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM, _XTILEDATA = 0x1023, 18
_SECONDS = 120


@cache
def refusal() -> str:
    """Why AMX cannot be used in this process, "" if it can; asks for permission."""
    lacking = missing_features("amx")
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    return ask_permission() or _self_check(ISAS["amx"])


def ask_permission() -> str:
    """Ask the operating system for the state of tiles; says why it refuses, or ""."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "only Linux on x86-64 is asked for tiles"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0:
        return ""
    number = ctypes.get_errno()
    return f"the operating system gives no tiles to this process ({os.strerror(number)})"


def _self_check(isa: Isa) -> str:
    """The verdict of the child, kept by machine, operating system and version of the kernels."""
    name = f"amx-{_key(isa)}.json"
    kept = read_private(cache_folder(), name)
    if kept is not None:
        return str(json.loads(kept))
    verdict, final = child_verdict(isa)
    if final:
        write_private(cache_folder(), name, json.dumps(verdict).encode())
    return verdict


def child_verdict(isa: Isa) -> tuple[str, bool]:
    """Run the self-check in a child process.

    Returns:
        Why it failed, "" if it passed; and whether that would be so again: a child that could not
        be started, or took too long, says nothing about the machine.
    """
    if getattr(sys, "frozen", False):
        return "its self-check needs an interpreter, and this program is a frozen one", False
    command = [sys.executable, "-m", "sparsefx.backends.cpu.amx_check", isa.name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"its self-check could not be run ({error})", False
    if ended.returncode < 0:
        return f"its self-check died of {signal.Signals(-ended.returncode).name}", True
    last = (ended.stdout.strip() or ended.stderr.strip()).rpartition("\n")[2]
    if ended.returncode != 0:
        return f"its self-check failed: {last}", ended.stdout.strip() != ""
    return ("", True) if last == PASSED else (f"its self-check said {last!r}", False)


def _key(isa: Isa) -> str:
    """What the verdict depends on."""
    from sparsefx.backends.cpu.amx_check import kernel_texts
    from sparsefx.backends.cpu.rates import machine_name

    parts = (sparsefx.__version__, machine_name(isa), platform.release(), *kernel_texts(isa))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
