"""From a Program to a plan: one walk over the graph, taking every node that a kernel computes.

Nodes become `values` (rows of a buffer, heads, quantized rows, ...). A linear takes along what
follows it: activation, residual, quantize. A node that no kernel computes gets no value; it and
all that needs it run outside the plan, on values that the plan hands over: a plan is one run of
kernels, which takes indices and no activations, so nothing comes back into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx

from sparsefx.backends.cpu.analyses.axes import BATCH, Layout
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.values import Embedded, Octets, Rows
from sparsefx.backends.cpu.kernels.embed import FIRST_INDEX_TABLE
from sparsefx.backends.cpu.lowering.attending import by_distance
from sparsefx.backends.cpu.lowering.layer import Layer
from sparsefx.backends.cpu.lowering.live import find_live
from sparsefx.backends.cpu.lowering.operators import handlers
from sparsefx.backends.cpu.lowering.unseen import Handed, reads_padding
from sparsefx.backends.cpu.lowering.walk import LoweringOptions, Walk
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Plan, Step, Word
from sparsefx.graph.effects import may_alias, writes
from sparsefx.program import Program
from sparsefx.target import Unsupported

__all__ = ["Lowered", "lower_program"]

aten = torch.ops.aten
_LINEAR = aten.linear.default
_STRIDED = aten.as_strided.default


@dataclass
class Lowered:
    """The result of the walk.

    Attributes:
        plan: Steps and buffers.
        exports: Nodes whose values the plan writes as tensors (outputs, and what the rest needs).
        layouts: How the dimensions of each export lie in the rows that the plan writes.
        rest: Nodes that run outside the plan, in order.
        reasons: Why each of the first such nodes was not taken: (node, reason).
        padding: Name of the input that is 0 at padding, or None.
        marks: Whether that input was tried with 0 and 1 alone.
        layers: What was decided for every linear.
        indices: Node of the index of each embedding table, by name in the plan; None counts the
            tokens of a sequence.
        host: Evaluates nodes outside the plan.
        linears: Linears of the graph, and how many of them run in PyTorch.
        heads_dropped: Heads of attention that were left out.
    """

    plan: Plan
    exports: dict[str, fx.Node]
    layouts: dict[str, Layout]
    rest: list[fx.Node]
    reasons: list[tuple[fx.Node, str]]
    padding: str | None
    marks: bool
    layers: list[Layer]
    indices: dict[str, fx.Node | None]
    host: Host
    linears: tuple[int, int]
    heads_dropped: int = 0

    @cached_property
    def table_rows(self) -> dict[str, int]:
        """Rows of the smallest table that each index reads, tables by distance included."""
        found: dict[str, int] = {}
        names = list(self.indices)
        for step in self.plan.steps:
            if "longest" in step.words:
                longest = int(step.words["longest"])  # type: ignore[arg-type]  # an int
                found["positions"] = min(found.get("positions", 1 << 62), longest)
            if not step.kernel.kind.startswith("embed"):
                continue
            for number in range(len(step.kernel.spec) - 1):
                table, slot = step.words[f"table{number}"], step.words[f"indices{number}"]
                name = names[int(slot) - FIRST_INDEX_TABLE]  # type: ignore[arg-type]  # an int
                found[name] = min(found.get(name, 1 << 62), len(table))  # type: ignore[arg-type]
        return found

    def unsupported(self) -> tuple[Unsupported, ...]:
        """`reasons`, each with how many linears run in PyTorch because of it."""
        total, within = self.linears[0], {*self.rest, *self.host.nodes}
        found = []
        for node, why in self.reasons:
            behind = _reached(node, within, "users") | _reached(node, within, "all_input_nodes")
            count = sum(n.target is _LINEAR for n in behind)
            what = f", and {count} of {total} linears with it" if count else ""
            found.append(Unsupported(f"%{node.name}", why, f"runs in PyTorch{what}"))
        return tuple(found)


def lower_program(program: Program, options: LoweringOptions) -> Lowered:
    """Lower a Program that is in eval mode."""
    program.infer_shapes()
    host = Host(program)
    walk = Walk(program, host, options)
    if host.written:
        return _in_pytorch(walk)
    if options.pack:
        walk.live = find_live(walk)
    table = handlers(walk)
    within = {node for found in walk.tried.values() for node in found.inner}
    for node in program.graph.nodes:
        known = node in host.nodes or node in walk.values or node in walk.taken
        if known or node in within or node.op == "output":
            continue
        target = type(walk.tried[node]) if node in walk.tried else node.target
        handler = table.get(target) if node.op == "call_function" else None
        why = handler(node) if handler else f"no kernel for {_op(node)}"
        if why:
            walk.reasons[node] = why
    return _finish(walk)


def _op(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else f"{node.op} {node.target}"


def _finish(walk: Walk) -> Lowered:
    """Settle what the plan gives back and what runs outside it."""
    outputs = list(walk.program.outputs().values())
    rest = _needed(walk, outputs)
    handed = _handed(walk, {n for node in rest for n in node.all_input_nodes} | set(outputs))
    padding = next((p for p in walk.padding if p is not None), None)
    if padding is not None and rest and reads_padding(walk.host, outputs, handed, padding):
        return _finish(_without_plan(walk, rest))
    unpacking, results = _unpacking(handed, FIRST_INDEX_TABLE + len(walk.indices))
    steps = walk.steps if padding is None else by_distance(walk.steps)
    plan = Plan((*steps, *unpacking), tuple(walk.indices), results)
    linears = walk.program.graph.find_nodes(op="call_function", target=_LINEAR)
    apart = [n for n in linears if n in walk.host.nodes and n in _run_each_time(walk, rest)]
    reasons = _first_reasons(walk, rest)
    if apart:
        reasons.append((apart[0], "it does not depend on an embedding of tokens"))
    return Lowered(
        plan,
        {each.node.name: each.node for each in handed},
        {each.node.name: each.layout for each in handed},
        *(rest, reasons, padding, _is_marks(walk, padding)),
        *(walk.layers, walk.indices, walk.host),
        linears=(len(linears), len(apart) + sum(n.target is _LINEAR for n in rest)),
        heads_dropped=sum(walk.dropped.values()),
    )


def _is_marks(walk: Walk, padding: str | None) -> bool:
    """Whether an input was tried with 0 and 1 alone, and could hold other numbers."""
    inputs = walk.program.graph.find_nodes(op="placeholder")
    return any(
        str(node.target) == padding
        and walk.host.vocabulary(node) == 2
        and node.meta["val"].dtype != torch.bool
        for node in inputs
    )


def _run_each_time(walk: Walk, rest: list[fx.Node]) -> set[fx.Node]:
    """Nodes that every call evaluates outside the plan, unlike those that became its constants."""
    wanted = [*rest, *walk.outputs, *(n for n in walk.indices.values() if n is not None)]
    within = {*rest, *walk.host.nodes}
    return {n for node in wanted for n in _reached(node, within, "all_input_nodes")}


def _handed(walk: Walk, wanted: set[fx.Node]) -> list[Handed]:
    """What the plan hands over of the wanted nodes, in graph order; written now if it was not."""
    found = []
    for node in walk.program.graph.nodes:
        if node in wanted and node in walk.values:
            written, layout = walk.written(node), walk.layout(node)
            assert written is not None, node
            assert layout is not None, node
            layout = replace(layout, first=layout.first + written.first)
            found.append(Handed(node, written, layout, walk.zero_at_padding(node)))
    return found


def _in_pytorch(walk: Walk) -> Lowered:
    """Lower nothing, as nodes write into memory that others read: kernels have no such order."""
    writing = next(n for n in walk.host.written if writes(n, training=False))
    walk.reasons[writing] = "it writes into the memory of an activation, which no kernel sees"
    return _finish(walk)


def _without_plan(walk: Walk, rest: list[fx.Node]) -> Walk:
    """The walk with nothing in its plan, because of what the nodes outside it read."""
    first, why = next(iter(_first_reasons(walk, rest)), (rest[0], "it runs in PyTorch"))
    own = set(rest)  # what the plan took has no reason of its own
    walk.reasons = {node: reason for node, reason in walk.reasons.items() if node in own}
    walk.reasons[first] = f"{why}, and padding counts there: nothing before it can leave it out"
    for kept in (walk.values, walk.steps, walk.indices, walk.layers, walk.padding, walk.dropped):
        kept.clear()
    return walk


def _unpacking(
    handed: Sequence[Handed], first: int
) -> tuple[list[Step], dict[str, tuple[int, int, int]]]:
    """The steps that hand over values, and `Plan.results`; `first` is the first free table."""
    steps, results = [], {}
    for slot, each in enumerate(handed, first):
        name, buffer = each.node.name, each.rows.buffer
        results[name] = (slot, buffer.rows, buffer.space)
        words: dict[str, Word] = {
            "rows": buffer.rows,
            "input": buffer,
            "origin": buffer.space,
            "result": slot,
            "space": buffer.space,
        }
        steps.append(Step(catalog.other("unpack"), words, name))
    return steps, results


def _first_reasons(walk: Walk, rest: list[fx.Node]) -> list[tuple[fx.Node, str]]:
    """Why nodes run outside the plan, where no node before them does for a reason of its own."""
    reasons = [(n, why) for n, why in walk.reasons.items() if why and n in set(rest)]
    return [(n, why) for n, why in reasons if not any(i in walk.reasons for i in _read(walk, n))]


def _read(walk: Walk, node: fx.Node) -> list[fx.Node]:
    """What a node, or the part of the graph that it ends, is computed from."""
    return [walk.tried[node].source] if node in walk.tried else node.all_input_nodes


def _reached(start: fx.Node, within: set[fx.Node], way: str) -> set[fx.Node]:
    """Nodes reached from `start` by `users` or `all_input_nodes`, not leaving `within`."""
    found, stack = {start}, [start]
    while stack:
        fresh = {n for n in getattr(stack.pop(), way) if n in within} - found
        found |= fresh
        stack += fresh
    return found


def _needed(walk: Walk, wanted: list[fx.Node]) -> list[fx.Node]:
    """Nodes outside the plan that the wanted ones need, in graph order.

    A value that cannot be handed over as a tensor (heads, scores, parts) is computed again.
    """
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in needed or node in walk.host.nodes:
            continue
        if _can_export(walk, node):
            continue
        walk.values.pop(node, None)
        needed.add(node)
        stack += walk.host.read_by(node)
    return [n for n in walk.program.graph.nodes if n in needed]


def _can_export(walk: Walk, node: fx.Node) -> bool:
    """Whether a node's value can be handed over: fp32, with all tokens of all sequences.

    Where something goes by the places in memory, no view is: it would lose what lies around it.
    """
    value, layout = walk.value(node), walk.layout(node)
    if layout is None or not any(BATCH in dim for dim in layout.dims):
        return False
    if may_alias(node) and walk.program.graph.find_nodes(op="call_function", target=_STRIDED):
        return False
    if isinstance(value, Rows):
        return value.code is None and value.kept is None
    if isinstance(value, Octets):
        return value.floats and value.kept is None
    return isinstance(value, Embedded)
