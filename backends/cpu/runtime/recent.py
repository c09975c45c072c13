"""What was prepared for the batches that came last."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["KEPT", "Recent"]

KEPT = 32
"""Kinds of batches (masks, shapes) for which something is kept."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, of which those that were not asked for the longest time go.

    Threads may share it without a lock, as each change is one operation of a dict: at worst a value
    is made twice.

    Args:
        each: How many values a kind of batch has.
    """

    def __init__(self, each: int = 1) -> None:
        self._most = KEPT * each
        self._held: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the last to go; None if there is none."""
        value = self._held.pop(key, None)
        return None if value is None else self.keep(key, value)

    def keep(self, key: K, value: V) -> V:
        """Keep a value, and return it."""
        self._held[key] = value
        for old in list(self._held)[: -self._most]:
            self._held.pop(old, None)
        return value

    def clear(self) -> None:
        """Keep nothing."""
        self._held.clear()
