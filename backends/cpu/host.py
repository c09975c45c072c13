"""The part of a graph that never touches activations: indices, masks, sizes, constants.

These nodes depend on the inputs and on stored tensors alone. They are small, integer, and differ
from model to model, so they run as they are; the plan takes over at the first embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.graphs import rank, shape_of
from sparsefx.program import Program

__all__ = ["HIDDEN", "Host", "Padding"]

_EMBEDDING = torch.ops.aten.embedding.default
HIDDEN = -1e4
"""An additive mask, or a score that is filled in, at or below this hides a key."""


class Host:
    """Evaluates nodes of one Program outside the plan.

    Args:
        program: In eval mode.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.nodes = _host_nodes(program.graph)

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a node that depends on no input, else None."""
        if node not in self.nodes or self._placeholders(node):
            return None
        value = self.evaluate([node], {})[node]
        return value if isinstance(value, Tensor) else None

    def evaluate(
        self, wanted: Iterable[fx.Node], known: Mapping[fx.Node, Any]
    ) -> dict[fx.Node, Any]:
        """Run what `wanted` needs beyond the `known` values."""
        values: dict[fx.Node, Any] = dict(known)
        for node in wanted:
            self._fill(node, values)
        return values

    def is_per_token(self, node: fx.Node) -> bool:
        """Whether a node has one value for each token: [batch or 1, sequence] or [sequence]."""
        # Export may give each input symbols of its own; the signature makes their sizes equal.
        inputs = self._program.graph.find_nodes(op="placeholder")
        known = [shape_of(n) for n in inputs if rank(n) == 2]
        return any(
            shape_of(node) in ((batch, sequence), (1, sequence), (sequence,))
            for batch, sequence in known
        )

    def sizes_only(self, node: fx.Node) -> bool:
        """Whether only the sizes of inputs decide a node's value, not what is in them."""
        stack, seen = [node], set()
        while stack:
            current = stack.pop()
            if current in seen or current.target is torch.ops.aten.sym_size.int:
                continue
            if current.op == "placeholder":
                return False
            seen.add(current)
            stack += current.all_input_nodes
        return True

    def for_sizes(self, node: fx.Node, batch: int, length: int) -> Tensor | None:
        """The value of a node that only sizes decide, for these sizes; else None."""
        if not self.sizes_only(node):
            return None
        known = self._sample(self._placeholders(node), batch, length)
        value = self.evaluate([node], known)[node]
        return value if isinstance(value, Tensor) else None

    def bind(self, batch: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
        """The values of the placeholders."""
        return {n: batch[str(n.target)] for n in self._program.graph.find_nodes(op="placeholder")}

    def padding(self, mask: fx.Node, *, hides: bool = False) -> Padding | None:
        """What an attention mask means, if it hides whole keys according to one input.

        Transformers builds masks in many ways, so the subgraph is not matched but tried: on random
        0/1 inputs it must hide exactly the keys whose input is 0, for every query.

        Args:
            mask: Its node.
            hides: Whether it is True where a key is hidden; else True or 0 where one is seen.
        """
        inputs = self._placeholders(mask)
        masks = [n for n in inputs if not n.name.startswith("input_ids")]
        for candidate in masks or inputs:
            if self._hides_keys(mask, candidate, inputs, hides):
                return Padding(str(candidate.target))
        return Padding(None) if self._hides_nothing(mask, inputs, hides) else None

    def _hides_keys(self, mask: fx.Node, by: fx.Node, inputs: set[fx.Node], hides: bool) -> bool:
        generator = torch.Generator().manual_seed(0)
        for number, (batch, length) in enumerate(self._trial_sizes()):
            known = self._sample(inputs, batch, length)
            chosen = torch.randint(0, 2, (batch, length), generator=generator)
            if number < 2:  # nothing hidden; all but the first token hidden
                chosen[:] = 1 - number
            chosen[:, 0] = 1
            known[by] = chosen.to(known[by].dtype)
            visible = _visible(self.evaluate([mask], known)[mask], batch, length, hides)
            if visible is None or not bool((visible == chosen.bool()[:, None, None, :]).all()):
                return False
        return True

    def _hides_nothing(self, mask: fx.Node, inputs: set[fx.Node], hides: bool) -> bool:
        batch, length = self._trial_sizes()[0]
        known = self._sample(inputs, batch, length)
        visible = _visible(self.evaluate([mask], known)[mask], batch, length, hides)
        return visible is not None and bool(visible.all())

    def _trial_sizes(self) -> tuple[tuple[int, int], ...]:
        """Sizes (batch, sequence) to try masks with; those of the Program where they are fixed."""
        dims = next(s.dims for s in self._program.signature.inputs if len(s.dims) == 2)
        free = ((3, 7), (2, 12), (3, 7), (2, 12))
        return tuple(
            (dims[0] if isinstance(dims[0], int) else b, dims[1] if isinstance(dims[1], int) else s)
            for b, s in free
        )

    def _sample(self, inputs: set[fx.Node], batch: int, length: int) -> dict[fx.Node, Any]:
        return {
            n: torch.ones(batch, length, dtype=n.meta["val"].dtype)
            for n in self._program.graph.find_nodes(op="placeholder")
            if n in inputs
        }

    def _placeholders(self, node: fx.Node) -> set[fx.Node]:
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in seen:
                seen.add(current)
                stack += current.all_input_nodes
        return {n for n in seen if n.op == "placeholder"}

    def _fill(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        stack = [node]
        while stack:
            current = stack[-1]
            missing = [n for n in current.all_input_nodes if n not in values]
            if current in values:
                stack.pop()
            elif missing:
                stack += missing
            else:
                values[current] = self._call(current, values)
                stack.pop()

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self._program.tensor(str(node.target))
        args = fx.map_arg(node.args, lambda n: values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
        if node.op == "call_module":
            return self._program.module.get_submodule(str(node.target))(*args, **kwargs)
        if node.op != "call_function":
            raise KeyError(f"{node.op} %{node.name} has no value")
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


class Padding:
    """Which input, if any, says what tokens are real.

    Args:
        source: Name of an input [batch, sequence] that is 0 at padding; None if all are real.
    """

    def __init__(self, source: str | None) -> None:
        self.source = source


def _visible(mask: object, batch: int, length: int, hides: bool) -> Tensor | None:
    """A mask as bool [batch, heads, queries, keys], or None if it is neither 0 nor hidden."""
    if not isinstance(mask, Tensor):
        return None
    if hides and mask.dtype != torch.bool:
        return None
    if mask.dtype != torch.bool:
        shown, hidden = mask == 0, mask <= HIDDEN
        if not bool((shown | hidden).all()):
            return None
        mask = shown
    seen: Tensor = ~mask if hides else mask
    if seen.dim() == 3 and seen.shape[0] % batch == 0:  # batch and heads in one dimension
        seen = seen.reshape(batch, -1, *seen.shape[1:])
    try:
        return seen.broadcast_to(batch, seen.shape[1] if seen.dim() == 4 else 1, length, length)
    except RuntimeError:
        return None


def _host_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on an embedding of an input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "output":
            continue
        inside = all(n in found for n in node.all_input_nodes)
        if inside and node.target is not _EMBEDDING:
            found.add(node)
    return found
