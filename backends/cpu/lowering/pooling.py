"""Lowering of sentence vectors: the mean over real tokens, and scaling to length 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.axes import BATCH, SEQUENCE
from sparsefx.backends.cpu.analyses.graphs import shape_of
from sparsefx.backends.cpu.analyses.means import Mean
from sparsefx.backends.cpu.analyses.values import Length, Rows
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import SEQUENCES, TOKENS, Buffer, Step, Word

if TYPE_CHECKING:
    from sparsefx.backends.cpu.lowering.walk import Walk

__all__ = ["ONLY_MEANS", "PoolingLowering"]

aten = torch.ops.aten
ONLY_MEANS = "of poolings only the mean of all real tokens has a kernel"


class PoolingLowering:
    """Lowers what makes one vector of a sequence."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def blanked(self, node: fx.Node, states: object, mask: object) -> bool:
        """Take `states * mask`, if the mask is 1 at real tokens and 0 at padding.

        What a plan leaves out needs no factor; that it is 0 is noted.
        """
        walk, layout = self._walk, self._walk.layout(states)
        by_token = layout is not None and layout.plain and layout.lead == ((BATCH,), (SEQUENCE,))
        if not isinstance(mask, fx.Node) or mask not in walk.host.nodes or not by_token:
            return False
        assert isinstance(states, fx.Node)
        source = self._marks(mask)
        if source is None or walk.conflicts(source):
            return False
        walk.padding.append(source)
        walk.blank.add(node)
        walk.values[node] = walk.values[states]
        return True

    def mean(self, node: fx.Node) -> str | None:
        """The mean of the real tokens of a sequence; see `means`."""
        walk, found = self._walk, self._walk.tried[node]
        assert isinstance(found, Mean), node
        rows, layout = walk.rows(found.source), walk.layout(node)
        if rows is None:
            return walk.unread(found.source)
        if layout is None or rows.buffer.space != TOKENS:
            return f"a mean of something else than tokens by channels; {ONLY_MEANS}"
        if walk.conflicts(found.padding):
            return "a mean over other tokens than attention sees"
        walk.padding.append(found.padding)
        target = Buffer(node.name, rows.buffer.rows, 4, SEQUENCES)
        words: dict[str, Word] = {"rows": target.rows, "input": rows.buffer, "output": target}
        walk.steps.append(Step(catalog.other("mean"), words, node.name))
        walk.values[node] = Rows(target)
        return None

    def summed(self, node: fx.Node) -> str | None:
        """A sum or a mean that is none over real tokens."""
        if self._walk.value(node.args[0]) is None:
            return self._walk.unread(node.args[0])
        return f"a sum that is no such mean; {ONLY_MEANS}"

    def greatest(self, node: fx.Node) -> str | None:
        """A maximum over tokens or channels."""
        if self._walk.value(node.args[0]) is None:
            return self._walk.unread(node.args[0])
        return f"a maximum; {ONLY_MEANS}"

    def length(self, node: fx.Node) -> str | None:
        """The Euclidean length of every token's channels."""
        rows = self._walk.rows(node.args[0])
        if rows is None:
            return self._walk.unread(node.args[0])
        given = (*node.args[1:], *(2, None, False)[len(node.args) - 1 :])
        last = len(shape_of(node)) - 1
        if given[0] != 2 or given[1] not in ([-1], [last]) or given[2] is not True or node.kwargs:
            return "a norm that is not the length of a token's channels"
        self._walk.values[node] = Length(rows, 0.0)
        return None

    def at_least(self, node: fx.Node) -> str | None:
        """A lower bound of lengths."""
        value, (least, *most) = self._walk.value(node.args[0]), node.args[1:]
        if not isinstance(value, Length):
            what = "no kernel for a clamp of activations"
            return self._walk.unread(node.args[0]) if value is None else what
        if not isinstance(least, (int, float)) or any(m is not None for m in most):
            return "a clamp that is no lower bound"
        self._walk.values[node] = Length(value.rows, max(value.least, float(least)))
        return None

    def widened(self, node: fx.Node) -> str | None:
        """Lengths, one for each channel."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Length):
            what = "no kernel for an expansion of activations"
            return self._walk.unread(node.args[0]) if value is None else what
        self._walk.values[node] = value
        return None

    def unit(self, node: fx.Node, length: Length) -> str | None:
        """What is divided by its own length."""
        walk, rows = self._walk, self._walk.rows(node.args[0])
        if rows is None or rows.buffer is not length.rows.buffer:
            return "a division by the length of something else"
        target = Buffer(node.name, rows.buffer.rows, 4, rows.buffer.space)
        words: dict[str, Word] = {"rows": target.rows, "input": rows.buffer, "output": target}
        words |= {"least": length.least, "space": target.space}
        walk.steps.append(Step(catalog.other("unit"), words, node.name))
        walk.own(node, target)
        return None

    def _marks(self, node: fx.Node) -> str | None:
        """The input that is 0 at padding, if a node is 1 at real tokens and 0 at padding."""
        host = self._walk.host
        source = host.only_mask(host.placeholders([node]))
        if source is None:
            return None

        def is_mark(given: Tensor) -> bool:
            value = host.evaluate([node], {source: given.to(source.meta["val"].dtype)})[node]
            if not isinstance(value, Tensor) or value.dim() != 3:
                return False
            real = (given != 0).float()[:, :, None]
            return value.shape[:2] == given.shape and torch.equal(
                value.float(), real.expand_as(value)
            )

        return str(source.target) if host.holds(source, is_mark) else None
