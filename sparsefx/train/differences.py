"""What differs between two trees of plain data, as lines to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences", "leaves"]

_SHOWN = 60  # characters of a value that a message shows


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield a line for each plain value that differs, with its path.

    >>> list(differences({"a": [1, 2]}, {"a": [1, 3]}, "x"))
    ['x.a[1]: was 2, is 3']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif old != new:
        texts = json.dumps(old), json.dumps(new)
        # What is cut off a long text must not be what differs.
        pairs = enumerate(zip(*texts, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), 0)
        begin = 0 if same < _SHOWN // 2 else same - _SHOWN // 4
        one, other = (_short(text, begin) for text in texts)
        yield f"{path}: was {one}, is {other}"


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each plain value, and its text.

    >>> list(leaves({"a": [1, {"b": None}]}, ""))
    [('a[0]', '1'), ('a[1].b', 'null')]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, json.dumps(value)


def _short(text: str, begin: int) -> str:
    """Return a text, or of a long one what stands around ``begin``."""
    if len(text) <= _SHOWN:
        return text
    end = begin + _SHOWN
    left, right = "..." if begin else "", "..." if end < len(text) else ""
    return f"{left}{text[begin:end]}{right}"
