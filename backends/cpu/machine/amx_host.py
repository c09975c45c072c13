"""Whether this process may use AMX: features, a self-check, and the kernel's permission.

These kernels were never run on a CPU with AMX, so they prove themselves first: a child process,
which may crash, multiplies on tiles and compares with exact integers (`amx_check`). What it found
is kept. Linux gives the state of tiles only to processes that ask for it; permission holds for all
threads and cannot be given back, so it is asked for once in a process, and only after a good check.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import sparsefx
from sparsefx.backends.cpu.machine.isa import ISAS, Isa, IsaName, missing_features
from sparsefx.backends.cpu.machine.private import cache_folder, read_private, write_private

__all__ = ["DIFFERS", "PASSED", "ask_permission", "child_verdict", "refusal"]

PASSED = "exact"
"""What the child says if all products were."""
DIFFERS = 2
"""Exit code of the child if one was not."""

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM, _XTILEDATA = 0x1023, 18
_SECONDS = 120
_DAY = 86_400.0
_FAULTS = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE)
"""What the kernels themselves can die of; any other signal comes from outside."""

logger = logging.getLogger(__name__)


@cache
def refusal(name: IsaName = "amx") -> str:
    """Why AMX cannot be used in this process, "" if it can; asks for permission."""
    lacking = missing_features(name)
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    return _self_check(ISAS[name]) or ask_permission()


def ask_permission() -> str:
    """Ask the operating system for the state of tiles; says why it refuses, or ""."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "only Linux on x86-64 is asked for tiles"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0:
        return ""
    number = ctypes.get_errno()
    why = os.strerror(number)
    if number == errno.ENOSPC:
        why = "the alternate signal stack of a thread is too small to hold them"
    return f"the operating system gives no tiles to this process ({why})"


def _self_check(isa: Isa) -> str:
    """The verdict of the child, kept by machine, operating system and version of the kernels."""
    folder, name, now = cache_folder(), f"amx-{_key(isa)}.json", time.time()
    kept = read_private(folder, name)
    why, until = json.loads(kept) if kept is not None else ("", 0.0)
    if now >= until:
        logger.warning("checking the AMX kernels once on this machine, %d s at most", _SECONDS)
        why, seconds = child_verdict(isa)
        until = now + seconds
        if seconds:
            write_private(folder, name, json.dumps([why, until]).encode())
    if folder is None or not why or until <= now or not (folder / name).exists():
        return why
    return f"{why} (kept in {folder / name})"


def child_verdict(isa: Isa) -> tuple[str, float]:
    """Run the self-check in a child process.

    Returns:
        Why it failed, "" if it passed; and for how many seconds that is to be believed: for ever
        where the kernels passed, differed or died of a fault, a day where they took too long, not
        at all where the child failed for reasons that say nothing about the machine.
    """
    why = _no_interpreter()
    if why:
        return f"its self-check needs a Python interpreter, but {why}", 0.0
    # -P: code in the current folder is no part of the check, unless this process runs it too.
    command = [sys.executable, "-P", "-m", "sparsefx.backends.cpu.measure.amx_check", isa.name]
    places = (place or "." for place in sys.path if isinstance(place, str))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    try:
        ended = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its self-check took more than {_SECONDS} s", _DAY
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"its self-check could not be run ({error})", 0.0
    return _verdict(ended.returncode, ended.stdout.strip(), ended.stderr.strip())


def _verdict(code: int, said: str, complained: str) -> tuple[str, float]:
    """What the end of the child means, as `child_verdict` gives it."""
    if code < 0:
        held = math.inf if -code in _FAULTS else 0.0
        return f"its self-check died of {_signal_name(-code)}", held
    last = (said or complained).rpartition("\n")[2]
    if code == 0:
        return ("", math.inf) if last == PASSED else (f"its self-check said {last!r}", 0.0)
    # Python itself ends with 2 where it cannot start, but says so on stderr.
    held = math.inf if code == DIFFERS and said else 0.0
    return f"its self-check failed: {last or f'exit code {code}'}", held


def _signal_name(number: int) -> str:
    """Real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _no_interpreter() -> str:
    """Why `sys.executable` is no interpreter that could be started, "" if it is one.

    In a frozen program, or one that embeds Python, it may be the program itself.
    """
    if getattr(sys, "frozen", False):
        return "this program is a frozen one"
    if not sys.executable:
        return "this process does not know where it is"
    if not Path(sys.executable).name.lower().startswith(("python", "pypy")):
        return f"this process runs in {sys.executable}"
    return ""


def _key(isa: Isa) -> str:
    """What the verdict depends on."""
    import llvmlite

    from sparsefx.backends.cpu.measure.amx_check import kernel_texts
    from sparsefx.backends.cpu.measure.rates import machine_name

    versions = (sparsefx.__version__, llvmlite.__version__, platform.release())
    parts = (*versions, machine_name(isa), *kernel_texts(isa))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
