"""The job of a slab: the words that its kernels read besides their step, and arrays they point to.

All of it but the indices and results follows from the padding of a batch, so it is made once for
all batches with the same mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.frame import JOB_FIELDS
from sparsefx.backends.cpu.kernels.distances import EDGE, HIDDEN
from sparsefx.backends.cpu.plan.plan import Plan
from sparsefx.backends.cpu.runtime.slabs import Cut, Slab, in_panels, panel_width

__all__ = ["WORD", "SlabJob"]

WORD = {name: number for number, name in enumerate(JOB_FIELDS)}
"""Place of each word of a job."""


class SlabJob:
    """A slab, and its words as one part of one.

    Attributes:
        slab: The slab.
        widths: Widths of its panels of tokens, and of those of one token per sequence.
        tokens: Tokens, and tokens of one per sequence, filling among them.
        longest: Tokens of its longest sequence.
        words: int64 [len(JOB_FIELDS)]; memory is not in it yet.
    """

    def __init__(self, slab: Slab, plan: Plan, cut: Cut) -> None:
        count = len(slab.rows)
        self.slab = slab
        self.widths = (slab.width, panel_width(count, cut.widest))
        self.tokens = (slab.tokens, in_panels(count, cut.widest))
        self.longest = int(slab.lengths.max())
        self._results = tuple(plan.results)
        # Filling computes what the first token does, and nobody reads it.
        self._source = np.maximum(slab.origin, 0).astype(np.intp)
        self._indices = {name: np.zeros(slab.tokens, np.int32) for name in plan.indices}
        self._table = np.stack([slab.starts, slab.lengths, slab.rows, np.arange(count)], axis=1)
        self._table = np.ascontiguousarray(self._table, np.int32)
        self._slots = np.full(self.tokens[1], -1, np.int32)
        self._slots[:count] = slab.rows
        known = [slab.origin, self._slots, *self._indices.values()]
        addresses = [array.ctypes.data for array in known]
        self._pointers = np.array([*addresses, *[0] * len(self._results)], np.int64)
        self._first_result = len(known)
        self._hidden = _hidden(slab) if cut.by_distance else None
        self.words = self._words()

    def connect(
        self,
        indices: Mapping[str, NDArray[np.int32]],
        results: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Take the indices of a batch, and write results to these arrays from now on.

        Args:
            indices: int32 [batch, sequence] by name.
            results: fp32 arrays by name.
        """
        for name, taken in self._indices.items():
            np.take(indices[name].reshape(-1), self._source, out=taken, mode="clip")
        for number, name in enumerate(self._results, self._first_result):
            self._pointers[number] = results[name].ctypes.data

    def _words(self) -> NDArray[np.int64]:
        values: dict[str, Any] = {
            "parts": 1,
            "sequences": self._table.ctypes.data,
            "sequence_count": len(self._table),
            "tables": self._pointers.ctypes.data,
            "tokens": self.tokens[0],
            "panels": self.tokens[0] // self.widths[0],
            "tokens_1": self.tokens[1],
            "panels_1": self.tokens[1] // self.widths[1],
            "hidden": 0 if self._hidden is None else self._hidden.ctypes.data,
        }
        return np.array([values.get(name, 0) for name in JOB_FIELDS], np.int64)


def _hidden(slab: Slab) -> NDArray[np.float32]:
    """For each token 0, or what hides it as a key.

    A block of keys may begin before the last token and end after it, so there are more than tokens.
    """
    hidden = np.zeros(slab.tokens + EDGE, np.float32)
    hidden[: slab.tokens][slab.origin < 0] = HIDDEN
    return hidden
