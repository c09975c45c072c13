"""Ctrl-C while modules are imported.

PyTorch aborts the process, or forgets the interrupt and goes on, where one comes while its own
modules are made. Ending at once loses nothing: files are written so that they survive it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["INTERRUPTED", "imports_end"]

INTERRUPTED = 130  # also what Typer makes of Ctrl-C
_IMPORT = "<frozen importlib._bootstrap>"
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


@contextmanager
def imports_end(told: str) -> Iterator[None]:
    """Within this context an interrupt of an import ends the process; others are as ever.

    Args:
        told: Written to the standard error before.
    """
    usual = signal.getsignal(signal.SIGINT)
    if (
        usual is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield  # somebody else decides: a script, or a shell that runs it in the background
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        outer = frame
        while outer is not None and outer.f_code.co_filename != _IMPORT:
            outer = outer.f_back
        if outer is None:
            signal.default_int_handler(number, frame)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.write((_SHOW_CURSOR if sys.stderr.isatty() else "") + told)
            sys.stderr.flush()
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
