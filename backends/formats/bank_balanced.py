"""Bank balanced: every bank of a row holds equally many values, whatever that number is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.formats.encoding import BoolArray
from sparsefx.backends.formats.n_of_m import NOfM, grouped

__all__ = ["BankBalanced"]


@dataclass(frozen=True)
class BankBalanced(NOfM):
    """`n-of-m` with `m` the bank and `n` taken from the fullest bank (Cao et al. 2019).

    A matrix that was not pruned to equal banks still encodes; its emptier banks are then filled
    with padding, and `FormatSize.padding_bits` shows what that costs.

    >>> BankBalanced(m=4).measure(np.eye(4, dtype=bool)).bits
    40
    """

    name: ClassVar[str] = "bank-balanced"
    n: int = 1
    m: int = 64

    def slots(self, mask: BoolArray) -> int:
        """The count of values in the fullest bank."""
        return int(np.count_nonzero(grouped(mask, self.m), axis=2).max(initial=0))
