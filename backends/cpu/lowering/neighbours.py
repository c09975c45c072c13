"""What stands around a linear: siblings on the same input, and what its kernel takes along."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators named below
from sparsefx.backends.cpu.analyses.graphs import real_users
from sparsefx.backends.cpu.analyses.layouts import MOVES
from sparsefx.backends.cpu.analyses.values import Octets
from sparsefx.backends.cpu.plan.plan import Buffer

if TYPE_CHECKING:
    from sparsefx.backends.cpu.lowering.walk import Walk

__all__ = ["Neighbours", "Tail"]

aten = torch.ops.aten
_QUANTIZE = torch.ops.sparsefx.quantize.default
_DEQUANTIZE = torch.ops.sparsefx.dequantize.default


@dataclass(frozen=True)
class Tail:
    """Nodes after a linear that its kernel computes as well.

    Attributes:
        last: The last of them, the linear itself if there is none.
        activation: Name, or "".
        residual: What is added, or None.
        snap: Scale and zero point of the quantizer right after the sum, or None.
    """

    last: fx.Node
    activation: str = ""
    residual: Buffer | None = None
    snap: tuple[float, int] | None = None


class Neighbours:
    """Questions about what reads a linear, and what else reads its input."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def siblings(self, node: fx.Node) -> list[fx.Node]:
        """Linears on the same input that only feed attention heads: computed as one."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        group = [
            n
            for n in source.users
            if n.target is aten.linear.default
            and n.args[0] is source
            and self._walk.uses.heads_only(self.snapped(n)[0])
        ]
        # Query and key may become codes, which a value without a quantizer does not.
        snapped = self.snapped(node)[1] is not None
        group = [n for n in group if (self.snapped(n)[1] is not None) == snapped]
        fresh = [n for n in group if n not in self._walk.values]
        return fresh if node in fresh else [node]

    def snapped(self, node: fx.Node) -> tuple[fx.Node, tuple[float, int] | None]:
        """The dequantize that follows a node, with its quantizer; the node itself if none does.

        A quantizer whose values another linear reads is no snap: it is kept as bytes.
        """
        users = real_users(node)
        if node in self._walk.outputs or len(users) != 1 or users[0].target is not _QUANTIZE:
            return node, None
        parameters = self._walk.quantization(users[0])
        after = list(users[0].users)
        if parameters is None or len(after) != 1 or after[0].target is not _DEQUANTIZE:
            return node, None
        if any(u.target is aten.linear.default for u in real_users(after[0])):
            return node, None
        return after[0], parameters

    def pieces(self, node: fx.Node) -> list[tuple[fx.Node, int, int]]:
        """Parts of a linear's channels that have users of their own, as gate and up have.

        Each is lowered as a linear of its own, with the activation after it. Nothing where the
        parts are heads: attention reads them from one buffer.

        Returns:
            Node of each part, its first channel, its channels.
        """
        walk = self._walk
        end = self.snapped(node)[0]
        whole = walk.layout(end)
        users = walk.uses.of(end)
        if whole is None or end in walk.outputs or walk.uses.heads_only(end):
            return []
        if len(users) == 1 and isinstance(walk.layouts.get(users[0]), tuple):
            users = [part for part in users[0].users if part.target is operator.getitem]
        found = []
        for part in users:
            layout = walk.layout(part)
            if part.target not in MOVES or layout is None or layout.plain is None:
                return []
            if layout.plain == whole.plain or part in walk.outputs:
                return []
            found.append((part, layout.first, layout.plain))
        found.sort(key=lambda piece: piece[1])
        apart = all(a[1] + a[2] <= b[1] for a, b in pairwise(found))
        return found if apart else []

    def tail(self, node: fx.Node, snap: tuple[float, int] | None) -> Tail:
        """Follow the only user: one activation, one addition of rows already computed."""
        walk = self._walk
        tail = Tail(node, snap=snap)
        while tail.last not in walk.outputs:
            users = walk.uses.of(tail.last)
            if len(users) != 1:
                break
            user = users[0]
            name = walk.activation(user)
            if name and not tail.activation and tail.residual is None:
                tail = replace(tail, last=user, activation=name)
                continue
            residual = self._residual(user, tail.last) if tail.residual is None else None
            if residual is None:
                break
            tail = replace(tail, last=user, residual=residual)
        return tail

    def _residual(self, user: fx.Node, behind: fx.Node) -> Buffer | None:
        """The buffer that `user` adds to `behind`, if it is an addition of written rows."""
        if user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
            return None
        walk = self._walk
        sides = [n for n in user.args[:2] if isinstance(n, fx.Node)]
        others = [n for n in sides if not walk.uses.comes_from(n, behind)]
        if len(sides) != 2 or len(others) != 1:
            return None
        layouts = [walk.layout(n) for n in (*others, user)]
        if layouts[0] is None or layouts[1] is None or layouts[0].dims != layouts[1].dims:
            return None
        found = walk.rows(others[0])
        return found.buffer if found else None

    def between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Nodes from a linear to the end of its tail, whose values are never written."""
        found, node = [], first
        while node is not last:
            node = self._walk.uses.of(node)[0]
            found.append(node)
        return found

    def sinks(
        self, node: fx.Node, rows: int, space: int
    ) -> tuple[bool, list[fx.Node], Octets | None]:
        """How a node's value is used: as fp32, and by which quantize nodes alike."""
        users = self._walk.uses.of(node)
        found: Octets | None = None
        quantizes: list[fx.Node] = []
        for user in users:
            parameters = self._walk.quantization(user) if user.target is _QUANTIZE else None
            if parameters is None:
                continue
            if found is None:
                found = Octets(Buffer(f"{node.name}.octets", rows, 1, space), *parameters)
            if (found.scale, found.zero_point) == parameters:
                quantizes.append(user)
        floats = node in self._walk.outputs or len(quantizes) < len(users)
        floats = floats or self._returned_through_identity(node)
        return floats, quantizes, found

    def _returned_through_identity(self, node: fx.Node) -> bool:
        return any(user.op == "output" for user in self._walk.uses.of(node))
