"""How zeros lie among neighbours: in blocks, or equally many in every group, or by chance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["zero_groups"]

_LARGEST = 256
_LIKE_BLOCKS = 0.9
_BALANCED = 0.1


@torch.no_grad()
def zero_groups(kept: Tensor) -> tuple[str, ...]:
    """Name the patterns that groups of neighbours along the last dimension have.

    Where each of m neighbours is kept by chance, with a share p, the count of a group has a
    variance of m p (1 - p). Within a line, blocks that are kept or dropped whole have m times that;
    over the lines, groups of which equally many are kept (N:M, equal banks) have next to none. The
    bounds allow for some weights that were rounded to zero.

    Args:
        kept: bool ``[lines, features]``, True where a weight is not zero.

    Returns:
        The patterns, the one that was meant before those that follow from it: of blocks the
        largest, of equally full groups the smallest.

    >>> zero_groups(torch.tensor([[1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]) == 1)[0]
    'blocks of 2'
    >>> zero_groups(torch.tensor([[1, 0, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1, 0, 1]]) == 1)[0]
    'equally full groups of 2'
    """
    lines, features = kept.shape
    share = kept.float().mean(dim=1)
    by_line, overall = (float((p * (1 - p)).mean()) for p in (share, share.mean()))
    if lines == 1 or by_line == 0:
        return ()
    upto = torch.nn.functional.pad(kept.cumsum(1, dtype=torch.int32), (1, 0))
    blocks: list[str] = []
    balanced: list[str] = []
    for size in range(2, min(_LARGEST, features // 2) + 1):
        counts = upto[:, ::size].diff(dim=1).float()
        within, over = (float(counts.var(dim=dim).mean()) for dim in (1, 0))
        if features % size == 0 and within >= _LIKE_BLOCKS * size * size * by_line:
            blocks.insert(0, f"blocks of {size}")
        if over <= _BALANCED * size * overall:
            balanced.append(f"equally full groups of {size}")
    return (*blocks, *balanced)
