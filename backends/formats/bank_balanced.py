"""Bank balanced: every bank of a row holds equally many values, whatever that number is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsefx.backends.formats.encoding import BoolArray
from sparsefx.backends.formats.n_of_m import NOfM

__all__ = ["BankBalanced"]


@dataclass(frozen=True)
class BankBalanced(NOfM):
    """`n-of-m` with `m` the bank and `n` taken from the fullest bank (Cao et al. 2019).

    A matrix that was not pruned to equal banks still encodes; its emptier banks are then filled
    with padding, and `FormatSize.padding_bits` shows what that costs.

    >>> import numpy as np
    >>> BankBalanced(m=4).measure(np.eye(4, dtype=bool)).bits
    40
    """

    name: ClassVar[str] = "bank-balanced"
    n: int = 1
    m: int = 64

    def fits(self, mask: BoolArray) -> bool:
        """Always: the fullest bank sets the size of all."""
        return True

    def slots(self, mask: BoolArray) -> int:
        """The count of values in the fullest bank."""
        return self.fullest(mask)
