"""Rotary positions: pairs of a head's channels turned by an angle that grows with the position.

    q * cos + cat(-q[..., half:], q[..., :half]) * sin

There are many spellings, so none is matched: what is computed from the channels of heads and from
tables of positions alone is tried on numbers. It is a rotation if each channel becomes

    y[c] = x[c] * own[position, c] + x[partner[c]] * other[position, c]
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import SameValues, shape_of
from sparsefx.backends.cpu.analyses.host import Host, at_longest, attempt
from sparsefx.backends.cpu.analyses.regions import Region, Regions
from sparsefx.backends.cpu.analyses.values import Embedded, Table
from sparsefx.program import Program

__all__ = ["Rotation", "Turn", "find_rotations"]

aten = torch.ops.aten

_ENDS = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.flatten.using_ints),
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default),
)
"""Operators that a spelling may end with."""
_INNER = (
    *(*_ENDS, aten.mul.Tensor, aten.neg.default, aten.slice.Tensor, aten.select.int),
    *(aten.stack.default, aten.chunk.default, aten.split.Tensor, aten.unbind.int),
    *(operator.getitem, aten.unsqueeze.default, aten.squeeze.dim, aten.unflatten.int),
    *(aten.split_with_sizes.default, aten.split.sizes),
)
_LONGEST = 8192
"""Positions of the table where the configuration gives no number."""
_TRIAL, _SHORT = 12, 7


@dataclass(frozen=True, eq=False)
class Turn:
    """What a rotation does.

    Attributes:
        table: fp32 [positions, 2 size], `own` then `other`, by the position of a token.
        partner: int64 [size].
    """

    table: Embedded
    partner: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rotation:
    """One spelling.

    Attributes:
        source: What is turned: heads, [batch, heads, sequence, size] or with the sequence first.
        inner: The nodes of the spelling whose values nothing else reads.
        turn: What is done; spellings that do the same share it.
    """

    source: fx.Node
    inner: frozenset[fx.Node]
    turn: Turn


def find_rotations(program: Program, host: Host) -> dict[fx.Node, Rotation]:
    """The rotations of a graph, by their last node."""
    finder = _Finder(host)
    found: dict[fx.Node, Rotation] = {}
    seen: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.target not in _ENDS or node in seen or node in host.nodes:
            continue
        rotation = finder.rotation(node)
        if rotation is not None:
            found[node] = rotation
            seen |= rotation.inner
    return found


class _Finder:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._regions = Regions(host, _INNER.__contains__)
        batch, sequence = host.dims
        self._usable = isinstance(batch, str)
        self._fixed = sequence if isinstance(sequence, int) else 0
        self._longest = self._fixed or host.admitted or _LONGEST
        self._same = SameValues()
        self._turns: dict[int, Turn | None] = {}

    def rotation(self, last: fx.Node) -> Rotation | None:
        """The rotation that ends with a node."""
        shape = shape_of(last)
        if not self._usable or len(shape) != 4 or not isinstance(shape[-1], int) or shape[-1] < 2:
            return None
        around = self._regions.around(last)
        if not any(self._reads_table(node) for node in around):
            return None
        sources = (n for n in reversed(around) if n is not last and shape_of(n) == shape)
        for source in sources:
            region = self._regions.between(source, last)
            if region is None:
                continue
            turn = self._turn(region)
            return Rotation(source, region.inner, turn) if turn is not None else None
        return None

    def _reads_table(self, node: fx.Node) -> bool:
        """Whether a node is a product with a tensor that is no activation."""
        factors = [n for n in node.args[:2] if isinstance(n, fx.Node) and n in self._host.nodes]
        return node.target is aten.mul.Tensor and any(shape_of(n) for n in factors)

    def _turn(self, region: Region) -> Turn | None:
        """What a region does, if it turns; each form of a region is tried once."""
        name = self._same.name(region.nodes[-1], {region.source: 0})
        if name not in self._turns:
            trial = partial(_Trial(region).turn, self._longest, self._fixed)
            self._turns[name] = attempt(trial)
        return self._turns[name]


class _Trial:
    """Trials of what is computed from heads and tables of positions.

    Args:
        region: It.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._host, self._shape = region.host, shape_of(region.source)

    def turn(self, longest: int, fixed: int) -> Turn | None:
        """The rotation that it is, None if it is none.

        Args:
            longest: Positions of the table, fewer where the model's own end before.
            fixed: The only length, or 0.
        """
        (_, trial), (_, short) = self._host.sizes(((1, _TRIAL), (1, _SHORT)))
        token = [n for n in (1, 2) if self._shape[n] == fixed or isinstance(self._shape[n], str)]
        if len(token) != 1 or not all(self._host.sizes_only(n) for n in self._region.tables):
            return None
        (place,) = token
        partner = self._partners(place, trial)
        if partner is None:
            return None
        read = at_longest(lambda length: self._read(place, length, partner), longest)
        if read is None:
            return None
        own, other = read
        if not all(self._agrees(place, n, partner, own, other) for n in (trial, short)):
            return None
        table = Embedded((Table(torch.cat([own, other], 1)),), (None,))
        return Turn(table, partner.numpy())

    def _run(self, x: Tensor, place: int) -> Tensor:
        """Values for [batch, heads, length, size], the same way round."""
        length = x.shape[2]
        known = self._host.sample(self._region.inputs, len(x), length)
        value = x if place == 2 else x.transpose(1, 2)
        result: Tensor = self._region.run(value, known)
        return result if place == 2 else result.transpose(1, 2)

    def _zeros(self, batch: int, place: int, length: int) -> Tensor:
        heads, size = self._shape[3 - place], self._shape[3]
        return torch.zeros(batch, heads, length, size)

    def _partners(self, place: int, length: int) -> Tensor | None:
        """The other channel that each reads, itself for none; None if some read more than one."""
        size = self._shape[3]
        x = self._zeros(size, place, length)
        x[torch.arange(size), :, :, torch.arange(size)] = 1
        reads = (self._run(x, place) != 0).flatten(1, 2).any(1)  # [read, reading]
        reads.fill_diagonal_(False)
        if int(reads.sum(0).max()) > 1:
            return None
        itself = torch.arange(size)
        partner = torch.where(reads.any(0), reads.int().argmax(0), itself)
        return partner if torch.equal(partner[partner], itself) else None

    def _read(self, place: int, length: int, partner: Tensor) -> tuple[Tensor, Tensor]:
        """`own` and `other`, [length, size] each."""
        lower = torch.arange(len(partner)) <= partner
        x = self._zeros(2, place, length)
        x[0, ..., lower] = x[1, ..., ~lower] = 1
        y = self._run(x, place)[:, 0]
        own, other = torch.where(lower, y[0], y[1]), torch.where(lower, y[1], y[0])
        return own, other.masked_fill(partner == torch.arange(len(partner)), 0)

    def _agrees(self, place: int, length: int, partner: Tensor, own: Tensor, other: Tensor) -> bool:
        """Whether the formula gives what the graph does."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self._zeros(3, place, length).shape, generator=generator) - 0.5
        expected = x * own[:length] + x[..., partner] * other[:length]
        return torch.allclose(self._run(x, place), expected, rtol=0, atol=1e-6)
