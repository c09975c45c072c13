"""Who reads what: users of a node, looking through what only orders its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from sparsefx.backends.cpu.analyses.axes import Channels, Layout
from sparsefx.backends.cpu.analyses.graphs import identity_source
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.layouts import MOVES, Layouts
from sparsefx.backends.cpu.analyses.rotary import Rotation
from sparsefx.backends.cpu.analyses.spelled import Spelled
from sparsefx.backends.cpu.analyses.tried import Tried

__all__ = ["Uses"]

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_FACTORS = (aten.mul.Tensor, aten.div.Tensor)


class Uses:
    """The uses of values in one graph.

    Args:
        layouts: How the dimensions of nodes lie in their values.
        tried: Spellings by their last node.
        host: What depends on no activation.
    """

    def __init__(self, layouts: Layouts, tried: Mapping[fx.Node, Tried], host: Host) -> None:
        self._layouts = layouts
        self._host = host
        self._tried = tried
        spelled = {last: x for last, x in tried.items() if isinstance(x, Spelled)}
        self._spelled_from = {found.source: last for last, found in spelled.items()}
        self._turned = {x.source for x in tried.values() if isinstance(x, Rotation)}

    def of(self, node: fx.Node) -> list[fx.Node]:
        """Users of a node, whatever the order of its tokens; a spelling is one user."""
        direct = set(node.users)
        last = self._spelled_from.get(node)
        if last is not None and direct <= {*self._tried[last].inner, last}:
            return [last]
        found: list[fx.Node] = []
        for user in node.users:
            found += self.of(user) if self._passes(user, node) else [user]
        return found

    def comes_from(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether `node` is `source` but for the order of its tokens."""
        while node is not source:
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or not self._passes(node, before):
                return False
            node = before
        return True

    def heads_only(self, node: fx.Node) -> bool:
        """Whether every user sees the channels as heads."""
        users = self.of(node)
        return bool(users) and all(self._as_heads(user) for user in users)

    def head_sizes(self, node: fx.Node) -> set[int]:
        """Channels of a head, by all users that see the channels of `node` as heads; else 0."""
        found = set()
        for user in self.of(node):
            layout = self._layout(user)
            last = layout.dims[-1] if layout is not None else ()
            known = len(last) == 1 and isinstance(last[0], Channels) and last[0].step == 1
            found.add(last[0].size if known and isinstance(last[0], Channels) else 0)
        return found

    def needs_floats(self, node: fx.Node) -> bool:
        """Whether the heads of a node are rotated, or multiplied with what is no activation."""
        stack = [node]
        while stack:
            current = stack.pop()
            if current in self._turned:
                return True
            for user in current.users:
                if user.target in _PRODUCTS:
                    if any(n in self._host.nodes for n in user.all_input_nodes):
                        return True
                elif user.target in (*MOVES, *_FACTORS) or identity_source(user):
                    stack.append(user)
        return False

    def _layout(self, node: fx.Node) -> Layout | None:
        found = self._layouts.get(node)
        return found if isinstance(found, Layout) else None

    def _passes(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether `user` gives the rows of `node`, with its tokens in this or another order."""
        if identity_source(user) is node:
            return True
        old, new = self._layout(node), self._layout(user)
        if user.target not in MOVES or old is None or new is None or old.plain is None:
            return False
        return (old.plain, old.first, old.tokens) == (new.plain, new.first, new.tokens)

    def _as_heads(self, user: fx.Node) -> bool:
        layout = self._layouts.get(user)
        if user.target not in MOVES or layout is None:
            return False
        if isinstance(layout, Layout) and layout.plain is None:
            return True
        return self.heads_only(user)
