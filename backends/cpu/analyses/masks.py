"""What the masks and biases of an attention mean: padding, and a table by distance.

Models build both in many ways, so nothing is matched: their sum is tried on random inputs. It must
be a number that depends on query - key and the head alone where the key is a real token, and hide
the key where it is padding; a window is a number that hides. It may depend on what is in one input
alone, the one that is 0 at padding; of tokens all that the model knows are tried. What padding sees
does not matter, unless it is other padding alone: then the zeros may be a segment of the text.

The table is read off at the longest length that is tried. Where it does not change any more in the
outer half of the distances, as with buckets and windows, it is taken to go on so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.by_distance import constant_from, cut, rows_by_distance
from sparsefx.backends.cpu.analyses.host import TRIALS, Host, at_longest, attempt
from sparsefx.backends.cpu.analyses.values import Mask
from sparsefx.backends.cpu.kernels.distances import EDGE, FAR, HIDDEN

__all__ = ["FILLED", "NOTHING", "DistanceTable", "MaskReader", "Meaning"]

FILLED = -1e4
"""An additive mask, or a score that is filled in, at or below this hides a key."""

_OTHERWISE = "its mask depends on more than padding and the distance of two tokens"
_UNTRIED = "its mask takes none of the sizes that are tried"
_LONGEST = 2048
_MOST_VALUES = 1 << 22
"""Values of the largest mask that is tried."""


@dataclass(frozen=True, eq=False)
class DistanceTable:
    """What attention adds by distance; see `kernels.distances` for the places of `values`.

    Attributes:
        values: fp32 [heads, places], [1, places] if all heads share them.
        zero: Place of distance 0.
        before: Tokens before itself that a query sees.
        after: Tokens after itself that it sees.
        longest: Longest sequence that the table knows; None if it goes on without a change.
    """

    values: NDArray[np.float32]
    zero: int
    before: int
    after: int
    longest: int | None

    def of(self, heads: NDArray[np.intp] | None) -> NDArray[np.float32]:
        """The rows of some heads, of all without any."""
        if heads is None or len(self.values) == 1:
            return self.values
        return np.ascontiguousarray(self.values[heads])


NOTHING = DistanceTable(np.zeros((1, 2 * EDGE + 1), np.float32), EDGE, FAR, FAR, None)
"""A table that changes no score."""


@dataclass(frozen=True)
class Meaning:
    """What the masks of an attention do.

    Attributes:
        padding: The input that is 0 at padding, None if all tokens are real.
        table: What they add by distance, None if nothing.
    """

    padding: str | None
    table: DistanceTable | None


class MaskReader:
    """Reads the masks of one Program; every sum of masks once.

    Args:
        host: Evaluates what depends on no activation.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[tuple[Mask, ...], Meaning | str] = {}

    def read(self, masks: tuple[Mask, ...]) -> Meaning | str:
        """What these masks do together, or why they cannot be taken."""
        if masks not in self._known:
            self._known[masks] = attempt(lambda: self._read(masks)) or _UNTRIED
        return self._known[masks]

    def _read(self, masks: tuple[Mask, ...]) -> Meaning | str:
        total = _Sum(self._host, masks)
        rows = total.rows()
        if rows is None:
            return _OTHERWISE
        fitting = (source for source in total.sources() if total.hides_zeros(rows, source))
        for source in fitting:
            table = self._table(total, rows)
            name = None if source is None else str(source.target)
            return table if isinstance(table, str) else Meaning(name, table)
        return _OTHERWISE

    def _table(self, total: _Sum, rows: Tensor) -> DistanceTable | str | None:
        """Rows by distance, at the longest length that is tried; or why they are no table."""
        fixed, admitted = self._host.dims[1], self._host.admitted
        most = min(admitted or _LONGEST, _LONGEST, int((_MOST_VALUES / len(rows)) ** 0.5))
        longest = total.far(rows, fixed if isinstance(fixed, int) else most)
        if longest is None:
            return _OTHERWISE
        table = _table(longest, fixed=isinstance(fixed, int))
        if table is not None and table.longest is not None and table.longest < admitted:
            return f"its bias by distance still changes beyond {table.longest} tokens"
        return table


class _Sum:
    """The sum of masks as a function of inputs, and what trials show of it.

    Args:
        host: Evaluates the masks.
        masks: On the scores of one attention.
    """

    def __init__(self, host: Host, masks: tuple[Mask, ...]) -> None:
        self._host, self._masks = host, masks
        self._inputs = host.placeholders(mask.node for mask in masks)
        self._sizes = list(dict.fromkeys(host.sizes(TRIALS)))

    def _of(self, known: dict[fx.Node, Tensor], batch: int, length: int) -> Tensor | None:
        """fp32 [batch, heads, queries, keys], -inf for hidden keys; None if it is no such thing."""
        values = self._host.evaluate([mask.node for mask in self._masks], known)
        parts = [_added(values[mask.node], mask, batch, length) for mask in self._masks]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        summed = functools.reduce(torch.add, found)
        return torch.where(summed <= FILLED, -torch.inf, summed)

    def rows(self) -> Tensor | None:
        """What it adds by distance where nothing is padding, [heads, 2 length - 1]; see `_rows`."""
        found = [self._unpadded(*size) for size in self._sizes]
        known = [rows for rows in found if rows is not None]
        longest = max(known, key=lambda rows: rows.shape[1], default=None)
        if longest is None or len(known) < len(found):
            return None
        sees_itself = torch.isfinite(longest[:, longest.shape[1] // 2]).all()
        alike = all(torch.equal(cut(longest, rows), rows) for rows in known)
        return longest if alike and sees_itself else None

    def _unpadded(self, batch: int, length: int) -> Tensor | None:
        known = self._host.sample(self._inputs, batch, length)
        found = self._of(known, batch, length)
        return None if found is None or found.isnan().any() else _rows(found)

    def sources(self) -> list[fx.Node | None]:
        """The inputs that may say what is padding, the likely ones first; at last none."""
        inputs = sorted(self._inputs, key=lambda n: n.name)
        return [*([n for n in inputs if not n.name.startswith("input_ids")] or inputs), None]

    def hides_zeros(self, rows: Tensor, source: fx.Node | None) -> bool:
        """Whether it is these rows, with keys hidden where `source` is 0; none if it is None."""
        read = self._host.contents(mask.node for mask in self._masks)
        if source is None:
            return not read
        if not read <= {source}:
            return False
        if self._host.vocabulary(source) is None:
            return False
        for given in self._host.trials(source):
            batch, length = given.shape
            known = self._host.sample(self._inputs, batch, length)
            known[source] = given.to(known[source].dtype)
            found = self._of(known, batch, length)
            if found is None:
                return False
            real = given.bool()
            expected = _matrix(rows, length).masked_fill(~real[:, None, None, :], -torch.inf)
            asked = real[:, None, :, None]  # queries of padding may see anything
            if not bool(((found == expected) | ~asked).all()) or _are_a_group(found, real):
                return False
        return True

    def far(self, rows: Tensor, longest: int) -> Tensor | None:
        """The same rows for the longest sequence that the model admits, `longest` at most."""
        if longest <= rows.shape[1] // 2 + 1:
            return rows
        found = at_longest(lambda length: self._unpadded(self._sizes[0][0], length), longest)
        if found is None or found.shape[1] < rows.shape[1]:
            return None
        return found if torch.equal(cut(found, rows), rows) else None


def _added(value: object, mask: Mask, batch: int, length: int) -> Tensor | None:
    """A mask as what it adds to scores, fp32 [batch, heads, queries, keys]."""
    if not isinstance(value, Tensor) or (mask.hides and value.dtype != torch.bool):
        return None
    if value.dtype == torch.bool:
        value = torch.zeros(value.shape).masked_fill(value if mask.hides else ~value, -torch.inf)
    if mask.joined and value.dim() == 3 and value.shape[0] % batch == 0:
        value = value.reshape(batch, -1, *value.shape[1:])
    heads = value.shape[-3] if value.dim() > 2 else 1
    try:
        return value.float().broadcast_to(batch, heads, length, length)
    except RuntimeError:
        return None


def _rows(total: Tensor) -> Tensor | None:
    """[heads, 2 length - 1] by query - key from 1 - length on, if only that and the head matter."""
    first = total[0]
    if not torch.equal(total, first.expand_as(total)):
        return None
    return rows_by_distance(first)


def _are_a_group(total: Tensor, real: Tensor) -> bool:
    """Whether zeros see each other and nothing else: a segment of the text, by its look."""
    sees = torch.isfinite(total) & ~torch.eye(real.shape[1], dtype=torch.bool)
    keys = real[:, None, None, :]
    alone = (sees & ~keys).any(-1) & ~(sees & keys).any(-1)
    return bool((alone & (~real & real.any(1, keepdim=True))[:, None]).any())


def _matrix(rows: Tensor, length: int) -> Tensor:
    """[heads, length, length] of rows by distance."""
    zero = rows.shape[1] // 2
    places = torch.arange(length)[:, None] - torch.arange(length)[None] + zero
    return rows[:, places]


def _table(rows: Tensor, *, fixed: bool) -> DistanceTable | None:
    """Rows by distance as what kernels read; None if they add nothing."""
    if not bool(rows.any()):
        return None
    if bool((rows == rows[:1]).all()):
        rows = rows[:1]
    length = rows.shape[1] // 2 + 1
    left, right = constant_from(rows), constant_from(rows.flip(-1))
    longest = None if max(left, right) <= length // 2 or fixed else length
    middle = rows[:, length - 1 - left : length + right]
    values = torch.nn.functional.pad(middle[None], (EDGE, EDGE), mode="replicate")[0]
    zero = EDGE + left
    seen = torch.isfinite(values).any(0)
    distances = seen.nonzero()[:, 0] - zero
    return DistanceTable(
        values.clamp(min=HIDDEN).contiguous().numpy(),
        zero,
        before=FAR if seen[-1] else int(distances.max()),
        after=FAR if seen[0] else int(-distances.min()),
        longest=longest,
    )
