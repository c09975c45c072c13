"""Lists of names for people: in the order of their numbers, and cut short."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["listed", "natural"]

_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return the key that sorts layer 2 before layer 10.

    >>> sorted(["layer.10.weight", "layer.2.weight", "layer.2.bias"], key=natural)
    ['layer.2.bias', 'layer.2.weight', 'layer.10.weight']
    """
    parts = _DIGITS.split(name)
    return tuple((int(part), part) if part.isdecimal() else (-1, part) for part in parts)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first of the names, and how many more there are.

    >>> listed(["a", "b", "c"]), listed(["a", "b", "c", "d"])
    ('a, b, c', 'a, b, c and 1 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
