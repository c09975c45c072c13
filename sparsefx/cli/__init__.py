"""The command ``sparsefx``: one module for each subcommand, put together in ``app``."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sparsefx.cli.interrupts import INTERRUPTED, imports_end

__all__ = ["LEADS", "main", "one_message"]

LEADS = os.environ.get("RANK", "0") == "0"
"""Whether this is the process that reports; torchrun and accelerate number those they start."""

_GO_ON = ("compress", "demo", "sensitivity", "sweep")
_KEPT = "interrupted; run the same command again: what is finished is kept, and no file is cut"
_ANEW = "interrupted; no file is cut, and the same command begins anew"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    A mistake of the user, and a machine without space or memory, end in one message and exit code
    2, an interrupt in exit code 130.
    """
    given = list(map(_at_home, sys.argv[1:] if arguments is None else arguments))
    name = next((each for each in given if not each.startswith("-")), "")
    goes_on = name in _GO_ON
    with imports_end(_interrupted(goes_on)), one_message(goes_on=goes_on):
        from sparsefx.cli.app import app

        app(args=given, prog_name="sparsefx")


def _at_home(argument: str) -> str:
    """Put the user's folder in place of ``~``, which shells do not where ``=`` stands before it.

    >>> home = os.path.expanduser("~")
    >>> _at_home("--data=train=~/a.csv") == f"--data=train={home}/a.csv"
    True
    >>> _at_home("--text=~a"), _at_home("a~/b")
    ('--text=~a', 'a~/b')
    """
    return re.sub(r"(?<![^=,])~(?=/|$)", lambda _: os.path.expanduser("~"), argument)


@contextmanager
def one_message(*, goes_on: bool = True) -> Iterator[None]:
    """End what is run inside as :func:`main` does: for scripts that call the library.

    Args:
        goes_on: Whether what is run inside goes on from where it was interrupted, if run again.

    Raises:
        SystemExit: In place of an error that is the user's or the machine's.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        sys.stderr.write(_interrupted(goes_on))
        sys.exit(INTERRUPTED)
    except Exception as error:
        status = _report_known(error)
        if status is None:
            raise
        sys.exit(status)


def _interrupted(goes_on: bool) -> str:
    """The line that says what an interrupt leaves; "" where another process says it."""
    told = _KEPT if goes_on else _ANEW
    return f"{told}\n" if LEADS else ""


def _report_known(error: Exception) -> int | None:
    """Print an error that is the user's or the machine's; None for any other."""
    from rich.console import Console

    from sparsefx.errors import SparsefxError, TrainingInterruptedError

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if isinstance(error, SparsefxError):
        interrupted = isinstance(error, TrainingInterruptedError)
        if LEADS or not interrupted:
            console.print(f"[bold red]error[/] {type(error).__name__}", end=": ")
            console.print(str(error), markup=False)
        return INTERRUPTED if interrupted else 2
    told = _of_the_machine(error)
    if told is None:
        return None
    console.print("[bold red]error[/]", end=" ")
    console.print(told, markup=False)
    return 2


def _of_the_machine(error: BaseException) -> str | None:
    """Say what the machine refused, a file, space or memory; None for any other error."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return _full(error.filename, error.strerror)
    if isinstance(error, OSError) and error.filename is not None:
        hint = "check that the path exists, is of the right kind and writable"
        return f"file at {error.filename}: {error.strerror}\n  hint: {hint}"
    if os.strerror(errno.ENOSPC) in str(error):  # tokenizers has no error of its own for it
        return _full(None, os.strerror(errno.ENOSPC))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory\n  hint: take a smaller batch, shape or model"
    return None


def _full(place: str | None, why: str | None) -> str:
    told = f"{place} cannot be written" if place else "a file cannot be written"
    return f"{told}: {why}\n  hint: free some space, then run the same command again"
