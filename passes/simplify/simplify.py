"""simplify: what computes nothing, or nothing new, leaves the graph."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, fx

from sparsefx.errors import ConvergenceError, PassError
from sparsefx.graph.callables import callable_name
from sparsefx.graph.effects import shared_with_writes, writes
from sparsefx.graph.ops import MODE
from sparsefx.passbase import Contract, Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.operators import DROPOUTS
from sparsefx.passes.simplify.constants import find_constants, value_of
from sparsefx.passes.simplify.indexing import plain_index, plain_mask
from sparsefx.passes.simplify.noops import settled_value, unchanged_input
from sparsefx.passes.simplify.subexpressions import find_repeated
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["Simplify"]

_MACHINERY = frozenset(
    {Property.MASKED, Property.LOCKED, Property.DISTILLING, Property.QUANT_PREPARED}
)
_MAX_ROUNDS = 20
_DRAWS = {
    torch.ops.sparsefx.draw.default: "take-successors",
    torch.ops.sparsefx.draw_masked.default: "strip-masked-lm",
}
"""What belongs to training though no property tells of it, and the pass that takes it out."""


@dataclass(frozen=True)
class Simplify(Pass):
    """Removes dead code, repeated computations, no-ops, and computations on constants.

    Establishes ``inference`` when ``inference=True``, else nothing; values stay as they were, in
    both modes and for all sizes.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> def model(x):
    ...     return torch.relu(x * 1.0).view(2, 4) + torch.relu(x)
    >>> program = small_program(model, x=torch.randn(2, 4))
    >>> print(graph_text(program), end="")
    %mul = aten.mul.Tensor(%x, 1.0)
    %relu = aten.relu(%mul)
    %view = aten.view(%relu, [2, 4])
    %relu_1 = aten.relu(%x)
    %add = aten.add.Tensor(%view, %relu_1)
    return {output: %add}
    >>> simple = Pipeline.parse("simplify").run(program)
    >>> print(graph_text(simple), end="")
    %relu = aten.relu(%x)
    %add = aten.add.Tensor(%relu, %relu)
    return {output: %add}
    >>> simple.history[-1].notes
    ('no-ops: 2 (aten.mul.Tensor 1, aten.view.default 1)',
     'common subexpressions: 1 (aten.relu.default 1)')

    Skips nodes whose memory is written to, random operators, constants above ``constant_limit``,
    and, unless ``inference=True``, casts to the floating type that a value already has: autocast
    may give it another. While masks or observers live in the Program, buffers are no constants.

    Raises:
        PassError: With ``inference=True``, where masked-lm or replace-modules is still at work.

    Attributes:
        inference: The Program will not be trained any more: dropout is removed too.
        constant_limit: Largest number of elements of a computed constant.
    """

    name: ClassVar[str] = "simplify"

    inference: bool = False
    constant_limit: int = 65_536

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.constant_limit < 0:
            raise self.refuse("constant_limit", "expected at least 0")

    def contract(self) -> Contract:
        """With ``inference=True`` it establishes that, and forbids what belongs to training."""
        if not self.inference:
            return super().contract()
        return Contract(establishes=frozenset({Property.INFERENCE}), forbids=_MACHINERY)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Simplify until nothing is left to do."""
        if self.inference:
            self._check_nothing_is_drawn(program)
        work = _Work(program, ctx.rewriter, self.inference, self.constant_limit)
        for _ in range(_MAX_ROUNDS):
            before = work.applied
            work.round()
            if work.applied == before:
                break
        else:
            raise ConvergenceError(f"not done after {_MAX_ROUNDS} rounds", who=self.name)
        if self.inference:
            program.properties |= {Property.INFERENCE}
        return PassReport(work.applied, tuple(work.skipped.values()), work.notes())

    def _check_nothing_is_drawn(self, program: Program) -> None:
        for node in program.graph.nodes:
            if node.target in _DRAWS:
                raise PassError(
                    f"{str(node.target).removesuffix('.default')} belongs to training",
                    who=self.name,
                    where=f"%{node.name}",
                    hint=f"run {_DRAWS[node.target]} before it",
                )


@dataclass
class _Work:
    """One run: the Program, and what was done to it so far."""

    program: Program
    rewriter: Rewriter
    inference: bool
    constant_limit: int
    done: dict[str, Counter[str]] = field(default_factory=dict)
    skipped: dict[str, Skip] = field(default_factory=dict)

    @property
    def applied(self) -> int:
        return sum(sum(counts.values()) for counts in self.done.values())

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind: how often, and on which operators."""
        found = []
        for kind, counts in self.done.items():
            listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            found.append(f"{kind}: {sum(counts.values())} ({listed})")
        return tuple(found)

    def round(self) -> None:
        """Try each kind of simplification once on the whole graph."""
        untouchable = shared_with_writes(self.program.graph)
        self._make_indexing_plain(untouchable)  # before the expands that show a mask's sizes go
        self._remove_noops(untouchable)
        self._merge_repeated(untouchable)
        self._fold_constants(untouchable)
        self._remove_dead()

    def _count(self, kind: str, node: fx.Node) -> None:
        name = "tensor" if node.op == "get_attr" else str(node.target)
        if node.op == "call_function":
            name = callable_name(node.target)
        self.done.setdefault(kind, Counter())[name] += 1

    def _replace(self, kind: str, old: fx.Node, new: fx.Node, *, same_type: bool = True) -> None:
        self._count(kind, old)
        self.rewriter.replace(old, new, same_type=same_type)

    def _remove_noops(self, untouchable: set[fx.Node]) -> None:
        for node in list(self.program.graph.nodes):
            if not node.users:
                continue
            # Out of training dropout is its input, the very memory: writes to it change nothing.
            off = self.inference and node.target in DROPOUTS
            if not off and _touches(node, untouchable):
                continue
            source = unchanged_input(self.program, node, inference=self.inference)
            if source is not None:
                self._replace("no-ops", node, source)
                continue
            rate = settled_value(node, inference=self.inference)
            if rate is not None:
                self._settle(node, rate)

    def _settle(self, node: fx.Node, value: float) -> None:
        self._count("no-ops", node)
        for user in list(node.users):
            args = fx.node.map_aggregate(user.args, lambda a: value if a is node else a)
            kwargs = fx.node.map_aggregate(user.kwargs, lambda a: value if a is node else a)
            self.rewriter.set_args(user, *args, **kwargs)
        self.rewriter.erase(node)

    def _make_indexing_plain(self, untouchable: set[fx.Node]) -> None:
        for node in list(self.program.graph.nodes):
            if _touches(node, untouchable):
                continue
            new = plain_index(self.program, self.rewriter, node)
            if new is None:
                new = plain_mask(self.program, node)
            if new is not None:  # a mask may be smaller where expands give its sizes
                self._replace("masks of ones and full indices", node, new, same_type=False)

    def _merge_repeated(self, untouchable: set[fx.Node]) -> None:
        for node, earlier in find_repeated(self.program.graph, untouchable):
            self._replace("common subexpressions", node, earlier)

    def _fold_constants(self, untouchable: set[fx.Node]) -> None:
        if self.program.active or self.program.properties & _MACHINERY:
            return
        for node in find_constants(self.program, untouchable):
            value = node.meta["val"]
            if not _is_small(value, self.constant_limit):
                where = f"%{node.name}"
                reason = f"its constant value is larger than constant_limit={self.constant_limit}"
                self.skipped[where] = Skip(where, reason)
                continue
            name = _free_name(f"constants.{node.name}", self.program.named_tensors())
            new = self.rewriter.add_buffer(name, value_of(self.program, node))
            self._replace("constants", node, new)

    def _remove_dead(self) -> None:
        active = {item.name for item in self.program.active}
        for node in reversed(list(self.program.graph.nodes)):
            if node.users or node.op in ("placeholder", "output") or writes(node):
                continue
            if node.target == MODE and not self.inference:
                continue  # later passes may put something in that follows the mode
            if node.op == "get_attr" and node.meta.get("by") in active:
                continue  # state of a pass that works while the Program trains
            self._count("dead code", node)
            if node.op == "get_attr":
                self.rewriter.remove_tensor(str(node.target))
            else:
                self.rewriter.erase(node)


def _free_name(base: str, taken: Container[str]) -> str:
    """Return ``base``, or with a number behind it: a copied graph gives a node's name again."""
    numbers = itertools.count(2)
    name = base
    while name in taken:
        name = f"{base}_{next(numbers)}"
    return name


def _touches(node: fx.Node, untouchable: set[fx.Node]) -> bool:
    """Whether a node or an input of it is written to; a copy of it is then no idle copy."""
    return node in untouchable or not untouchable.isdisjoint(node.all_input_nodes)


def _is_small(value: Tensor, limit: int) -> bool:
    sizes = list(value.shape)
    return all(isinstance(size, int) for size in sizes) and torch.Size(sizes).numel() <= limit
