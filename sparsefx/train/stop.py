"""Signals that ask a session, or another long job, to stop, and the error by which it does."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from sparsefx.errors import TrainingInterruptedError

__all__ = ["StopRequest", "interrupted"]


class StopRequest:
    """While entered, SIGINT and SIGTERM ask to stop; a second one does what it always does.

    Attributes:
        asked: Whether one came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


def interrupted(what: str, who: str, where: str = "") -> TrainingInterruptedError:
    """Return the error that ends what was asked to stop, and goes on when run again."""
    hint = "run the same command again to go on from there"
    return TrainingInterruptedError(what, who=who, where=where, hint=hint)
