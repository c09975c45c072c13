"""Values of [queries, keys] that depend on the distance query - key alone, as rows by distance.

A row begins with the distance 1 - length and ends with length - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["constant_from", "cut", "rows_by_distance"]


def rows_by_distance(values: Tensor) -> Tensor | None:
    """[..., length, length] as [..., 2 length - 1], if only the distance matters."""
    if not torch.equal(values[..., 1:, 1:], values[..., :-1, :-1]):
        return None
    return torch.cat([values[..., 0, 1:].flip(-1), values[..., :, 0]], -1)


def cut(rows: Tensor, shorter: Tensor) -> Tensor:
    """The middle of rows, as long as shorter ones."""
    skip = (rows.shape[-1] - shorter.shape[-1]) // 2
    return rows[..., skip : skip + shorter.shape[-1]]


def constant_from(rows: Tensor) -> int:
    """Distance from which on rows [n, distances] do not change, towards their first place."""
    changes = (rows[:, 1:] != rows[:, :-1]).any(0).nonzero()[:, 0]
    zero = rows.shape[1] // 2
    return max(0, zero - int(changes.min())) if len(changes) else 0
