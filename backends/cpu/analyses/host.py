"""The part of a graph that never touches activations: indices, masks, sizes, constants.

These nodes depend on the inputs and on stored tensors alone. They are small, integer, and differ
from model to model, so they run as they are; the plan takes over at the first embedding of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import rank, shape_of
from sparsefx.graph.effects import may_alias, shared_with_writes, writes
from sparsefx.inputs.signature import Dim, InputSpec
from sparsefx.program import Program

__all__ = ["TRIALS", "Host", "at_longest", "attempt"]

T = TypeVar("T")

TRIALS = ((3, 7), (2, 12), (3, 7), (2, 12))
"""Sequences of trials, and their length, where a Program takes any."""

aten = torch.ops.aten
_EMBEDDING = aten.embedding.default
_FORM_ALONE = {
    aten.sym_size.int: 0,
    aten.zeros_like.default: 0,
    aten.ones_like.default: 0,
    aten.full_like.default: 0,
    aten.empty_like.default: 0,
    aten.new_zeros.default: 0,
    aten.new_ones.default: 0,
    aten.new_full.default: 0,
    aten.new_empty.default: 0,
    aten.expand_as.default: 1,
    aten.view_as.default: 1,
    aten.type_as.default: 1,
    aten.to.other: 1,
}
"""Operators that read size or type alone of one argument, and which."""
_ANY_SIZE = 3
_NEAR = 64
_FEW = 4
_LONGEST = 2048
_AT_ONCE = 1024
"""Sequences of a trial of all that an input may hold."""
_COUNTS = (aten.cumsum.default, aten.sum.default, aten.sum.dim_IntList)


class Host:
    """Evaluates nodes of one Program outside the plan.

    Args:
        program: In eval mode.

    Attributes:
        nodes: What it can evaluate.
        places: The place of every node of the graph.
        written: Nodes outside it whose memory is written to in place, in order, the writing ones
            among them: no kernel sees those writes.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.nodes: set[fx.Node] = set()
        self.places = {node: number for number, node in enumerate(program.graph.nodes)}
        self._shared = shared_with_writes(program.graph, training=False)
        self._writers = tuple(node for node in self._shared if writes(node, training=False))
        for node in program.graph.nodes:
            inside = node.op != "output" and all(n in self.nodes for n in node.all_input_nodes)
            if inside and (node.target is not _EMBEDDING or self._looks_up_sizes(node)):
                self.nodes.add(node)
        outside = self._shared - self.nodes
        self.written = tuple(sorted(outside, key=self.places.__getitem__))

    @property
    def tokens(self) -> InputSpec:
        """The input that is [batch, sequence], or else the first of two dimensions."""
        signature = self._program.signature
        return signature.tokens or next(s for s in signature.inputs if len(s.dims) == 2)

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders."""
        return self._program.graph.find_nodes(op="placeholder")

    @property
    def dims(self) -> tuple[Dim, Dim]:
        """Batch and sequence as the signature has them: a name stands for any size."""
        batch, sequence = self.tokens.dims
        return batch, sequence

    @property
    def admitted(self) -> int:
        """The longest sequence that the model's configuration admits, 0 if it does not say."""
        given = self._program.config.get("max_position_embeddings")
        return max(given, 0) if isinstance(given, int) else 0

    def sizes(self, free: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Sequences and their length for trials: those that the Program takes alone, else near.

        Args:
            free: For a Program that takes any.
        """
        return [self._nearest(*each) for each in free]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is tried."""
        fixed = self.dims[1]
        return fixed if isinstance(fixed, int) else min(self.admitted or _LONGEST, _LONGEST)

    def admits(self, size: tuple[int, int]) -> bool:
        """Whether the Program takes so many sequences of such a length."""
        signature = self._program.signature
        return signature.admits(signature.sizes(*size))

    def _nearest(self, batch: int, length: int) -> tuple[int, int]:
        """So many sequences of this length, or somewhat longer where the Program asks for that."""
        fixed = [dim if isinstance(dim, int) else None for dim in self.dims]
        batch, lengths = fixed[0] or batch, range(length, length + _NEAR)
        for each in [fixed[1]] if fixed[1] else lengths:
            sizes = zip(self.dims, (batch, each), strict=True)
            if self._program.signature.admits({d: n for d, n in sizes if isinstance(d, str)}):
                return batch, each
        return batch, fixed[1] or length

    def _looks_up_sizes(self, node: fx.Node) -> bool:
        """Whether an embedding is none of tokens or positions, but of what only sizes decide."""
        index = node.args[1]
        assert isinstance(index, fx.Node)
        return self.sizes_only(index) and not self.is_per_token(index)

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a node that depends on no input, else None."""
        if node not in self.nodes or self.placeholders([node]):
            return None
        value = self.evaluate([node], {})[node]
        return value if isinstance(value, Tensor) else None

    def evaluate(
        self, wanted: Iterable[fx.Node], known: Mapping[fx.Node, Any]
    ) -> dict[fx.Node, Any]:
        """Run what `wanted` needs beyond the `known` values."""
        values: dict[fx.Node, Any] = dict(known)
        if self._writers:  # what was written when is a matter of order
            needed = self._reached(wanted, self.read_by, known)
            for node in sorted(needed - known.keys(), key=self.places.__getitem__):
                values[node] = self._call(node, values)
        for node in wanted:
            self._fill(node, values)
        return values

    def read_by(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that decide a node's value: its inputs, and who writes into its memory."""
        return [*node.all_input_nodes, *(self._writers if node in self._shared else ())]

    def is_per_token(self, node: fx.Node) -> bool:
        """Whether a node has one value for each token: [batch or 1, sequence] or [sequence]."""
        # Export may give each input symbols of its own; the signature makes their sizes equal.
        same = {s.name for s in self._program.signature.inputs if s.dims == self.dims}
        inputs = self._program.graph.find_nodes(op="placeholder")
        known = [shape_of(n) for n in inputs if n.target in same]
        return any(
            shape_of(node) in ((batch, sequence), (1, sequence), (sequence,))
            for batch, sequence in known
        )

    def sizes_only(self, node: fx.Node) -> bool:
        """Whether only the sizes of inputs decide a node's value, not what is in them."""
        return not self.contents([node])

    def contents(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The inputs of which not size and type alone decide what nodes are."""
        return {n for n in self._reached(nodes, self._content_read) if n.op == "placeholder"}

    def _content_read(self, node: fx.Node) -> list[fx.Node]:
        place = _FORM_ALONE.get(node.target)  # type: ignore[call-overload]  # a name has no place
        if place is None:
            return self.read_by(node)
        shape_alone = node.args[place]
        others = [*node.args[:place], *node.args[place + 1 :], *node.kwargs.values()]
        found: list[fx.Node] = []
        fx.map_arg(others, found.append)
        return [n for n in self.read_by(node) if n is not shape_alone or n in found]

    def for_sizes(self, node: fx.Node, batch: int, length: int) -> Tensor | None:
        """The value of a node that only sizes decide, for these sizes; else None."""
        if not self.sizes_only(node):
            return None
        known = self.sample(self.placeholders([node]), batch, length)
        value = self.evaluate([node], known)[node]
        return value if isinstance(value, Tensor) else None

    def bind(self, batch: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
        """The values of the placeholders."""
        return {n: batch[str(n.target)] for n in self._program.graph.find_nodes(op="placeholder")}

    def sample(self, inputs: set[fx.Node], batch: int, length: int) -> dict[fx.Node, Any]:
        """Ones for some inputs, of as many sequences of this length."""
        known: dict[Dim, int] = dict(zip(self.dims, (batch, length), strict=True))
        specs = {spec.name: spec for spec in self._program.signature.inputs}
        found = {}
        for node in inputs:
            spec = specs[str(node.target)]
            shape = [known.get(d, d if isinstance(d, int) else _ANY_SIZE) for d in spec.dims]
            found[node] = torch.ones(shape, dtype=spec.dtype)
        return found

    def placeholders(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The inputs that nodes depend on."""
        return {n for n in self._reached(nodes, self.read_by) if n.op == "placeholder"}

    def vocabulary(self, source: fx.Node) -> int | None:
        """How many values an input may have, counted from 0; None where that cannot be known.

        The rows of the smallest table that it indexes; 2 where it decides no index, as of a mask.
        Not known where an index is computed from it in any way but by views, truths and counts,
        and where it is not [batch, sequence].
        """
        if rank(source) != 2:
            return None
        tables = self._program.graph.find_nodes(op="call_function", target=_EMBEDDING)
        rows: list[int] = [
            shape_of(node.args[0])[0]
            for node in tables
            if source in self._reached([node.args[1]], _same_values)
        ]
        if rows:
            return max(2, min(rows))
        indices = [node.args[1] for node in tables]
        return None if source in self._reached(indices, self._told_by) else 2

    def _told_by(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values could be told from those of a node."""
        value = node.meta.get("val")
        is_truth = isinstance(value, Tensor) and value.dtype == torch.bool
        return [] if is_truth or node.target in _COUNTS else self._content_read(node)

    def only_mask(self, inputs: Collection[fx.Node]) -> fx.Node | None:
        """The one of these inputs, if there is one and it is known which values it may have."""
        known = [node for node in inputs if self.vocabulary(node) is not None]
        return known[0] if len(inputs) == len(known) == 1 else None

    def trials(self, source: fx.Node) -> Iterator[Tensor]:
        """Values of an input that is 0 at padding: each that it may have, most of them twice."""
        count = self.vocabulary(source)
        assert count is not None, source
        generator = torch.Generator().manual_seed(0)
        for number, (batch, length) in enumerate(sizes := self.sizes(TRIALS)):
            chosen = torch.randint(0, 2, (batch, length), generator=generator)
            if number < 2:  # nothing is padding; all but the first token is
                chosen[:] = 1 - number
            chosen[:, 0] = 1
            few = min(count, _FEW if number % 2 else count)  # few: some are often equal
            yield chosen * torch.randint(1, few, (batch, length), generator=generator)
        batch = self.dims[0] if isinstance(self.dims[0], int) else _AT_ONCE
        length = max(each for _, each in sizes)
        shape = (batch, (length + 1) // 2)
        for first in range(1, count if count > 2 else 1, math.prod(shape)):
            values = torch.arange(first, first + math.prod(shape)).clamp(max=count - 1)
            yield values.reshape(shape).repeat(1, 2)[:, :length]

    def holds(self, source: fx.Node, check: Callable[[Tensor], bool]) -> bool:
        """Whether a check of the values of an input holds in all trials, and in a long one."""
        if not all(attempt(partial(check, given)) for given in self.trials(source)):
            return False
        tried = at_longest(lambda length: check(self._long(source, length)), self.longest)
        return tried is not False

    def _long(self, source: fx.Node, length: int) -> Tensor:
        """Values of one sequence without padding, and of one that is padding in half its places."""
        (sizes,) = self.sizes([(2, length)])
        if not self.admits(sizes):
            raise IndexError(f"the model takes no {length} tokens")
        generator = torch.Generator().manual_seed(0)
        real = torch.randint(0, 2, sizes, generator=generator)
        real[0], real[:, 0] = 1, 1
        count = self.vocabulary(source)
        assert count is not None, source
        return real * torch.randint(1, count, sizes, generator=generator)

    @staticmethod
    def _reached(
        nodes: Iterable[fx.Node],
        read: Callable[[fx.Node], Iterable[fx.Node]],
        known: Container[fx.Node] = (),
    ) -> set[fx.Node]:
        """Nodes, and all that they are computed from; nothing behind the known ones."""
        seen: set[fx.Node] = set()
        stack = list(nodes)
        while stack:
            current = stack.pop()
            if current not in seen:
                seen.add(current)
                stack += () if current in known else read(current)
        return seen

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


def _same_values(node: fx.Node) -> list[fx.Node]:
    """The node whose values a view, or a copy, shows."""
    shows = may_alias(node) or node.target is aten.clone.default
    source = node.args[0] if shows and not writes(node) else None
    return [source] if isinstance(source, fx.Node) else []


def attempt(run: Callable[[], T]) -> T | None:
    """What a trial gives; None where the model does not take the sizes that are tried."""
    try:
        return run()
    except (IndexError, RuntimeError):
        return None


def at_longest(run: Callable[[int], T], longest: int) -> T | None:
    """`run` for the longest length, at most `longest`, that the tables of a model admit, if any."""
    low, high, found = 0, longest, None
    length = longest
    while length > low:
        try:
            found = run(length)
        except (IndexError, RuntimeError):  # a table ends before
            high = length
        else:
            low = length
        length = (low + high) // 2
    return found
