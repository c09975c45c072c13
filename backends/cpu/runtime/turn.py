"""A lock that a forked process finds free."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

__all__ = ["Turn"]


class Turn:
    """A lock for callers that take turns: `with turn: ...`.

    A fork may happen while another thread holds it. That thread does not exist in the child, so
    nobody would ever release it there; the child gets a new one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _ALIVE.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Become free, whoever held it."""
        self._lock = threading.Lock()


_ALIVE: weakref.WeakSet[Turn] = weakref.WeakSet()


def _renew_all() -> None:
    for turn in _ALIVE:
        turn.renew()


os.register_at_fork(after_in_child=_renew_all)
