"""Compare two ways of running a Program node by node, and name the first node that differs.

Works for a Program before and after a pass, and for everything that has ``trace`` (the targets
``reference`` and ``onnxruntime``): nodes are matched by name, which passes keep for what they do
not touch.

>>> import torch
>>> from sparsefx.instruments.compare import compare
>>> from sparsefx.testing import small_program
>>> one = small_program(lambda x: torch.tanh(x + 1.0) * 2.0, x=torch.zeros(2))
>>> two = one.copy()
>>> found = compare(one, two, {"x": torch.ones(2)})
>>> found.first is None, [row.node for row in found.rows]
(True, ['add', 'tanh', 'mul'])
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx

from sparsefx.errors import SparsefxError, did_you_mean
from sparsefx.graph.callables import callable_name
from sparsefx.inputs.signature import InputSpec
from sparsefx.program import Program
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from torch.fx.node import Argument

    from sparsefx.target import Target

__all__ = [
    "Comparison",
    "NodeDifference",
    "Traced",
    "compare",
    "compare_fed",
    "difference",
    "feed_quantized",
    "tappable",
    "trace",
]

_FED = "fed_"
_QUANTIZED = "quantized."


class Traced(Protocol):
    """Something that can show the values of its nodes."""

    def trace(
        self, batch: Mapping[str, Tensor], nodes: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Run on ``batch``; return the value of the nodes named, or of all of them."""


class TracedProgram(Traced, Protocol):
    """A traced one that holds the Program it runs."""

    program: Program


@dataclass(frozen=True)
class NodeDifference:
    """How far one node's values lie apart.

    Attributes:
        node: Its name.
        op: What it calls.
        largest: Largest absolute difference; steps for integers. NaN when only one side is NaN.
        scale: Largest absolute value on the expected side.
        share: Share of the elements that differ at all.
        problem: Why the two cannot be compared (shape, type); else empty.
        differs: Whether it is beyond the tolerance.
    """

    node: str
    op: str
    largest: float
    scale: float
    share: float
    problem: str
    differs: bool

    def __str__(self) -> str:
        if self.problem:
            return f"%{self.node} ({self.op}): {self.problem}"
        return (
            f"%{self.node} ({self.op}): differs by {self.largest:.3g} of {self.scale:.3g}, "
            f"{self.share:.1%} of the elements"
        )


@dataclass(frozen=True)
class Comparison:
    """The nodes that both sides have, in graph order, and those that only one has."""

    rows: tuple[NodeDifference, ...]
    only_expected: tuple[str, ...]
    only_found: tuple[str, ...]

    @property
    def first(self) -> NodeDifference | None:
        """The first node that differs beyond the tolerance, if any."""
        return next((row for row in self.rows if row.differs), None)

    def __str__(self) -> str:
        first, total = self.first, len(self.rows)
        if first is not None:
            count = sum(row.differs for row in self.rows)
            told = f"{count} of {total} nodes differ; the first is {first}"
        else:
            told = f"all {total} nodes agree" if total else "no node is in both"
        alone = {"expected": self.only_expected, "found": self.only_found}
        return told + "".join(
            f"; in {side} alone: {len(names)}" for side, names in alone.items() if names
        )


def compare(
    expected: Program | Traced,
    found: Program | Traced,
    batch: Mapping[str, Tensor],
    *,
    nodes: Collection[str] | None = None,
    tolerance: float = 1e-5,
    steps: int = 0,
) -> Comparison:
    """Run both on ``batch`` and compare node by node.

    A float node differs when ``|a - b| > tolerance * max(1, max|a|)`` anywhere; an integer node
    when ``|a - b| > steps``; a boolean node when any element does. Programs run in evaluation mode.

    Args:
        expected: A Program or a compiled one; its order is the order of the rows.
        found: The other.
        batch: Inputs by name.
        nodes: Names of the nodes to look at; all that both have by default.
        tolerance: See above.
        steps: See above.

    Raises:
        SparsefxError: When a node of ``nodes`` is in neither.
    """
    left, right = _trace(expected, batch, nodes), _trace(found, batch, nodes)
    for name in nodes or ():
        if name not in left and name not in right:
            raise SparsefxError(
                f"there is no node {name!r} to compare",
                who="compare",
                where=name,
                hint=did_you_mean(name, _trace(expected, batch, None)),
            )
    ops = _operators(expected) or _operators(found)
    rows = tuple(
        difference(name, ops.get(name, ""), value, right[name], tolerance, steps)
        for name, value in left.items()
        if name in right
    )
    return Comparison(
        rows,
        tuple(name for name in left if name not in right),
        tuple(name for name in right if name not in left),
    )


def compare_fed(
    expected: Program | TracedProgram,
    target: Target,
    batch: Mapping[str, Tensor],
    *,
    steps: int = 1,
    tolerance: float = 1e-3,
) -> Comparison:
    """Compare each quantized value that ``target`` computes, fed with the expected integers.

    Run end to end, a value that lies halfway between two integers may be rounded up on one side
    and down on the other, and every layer after it sees other integers: differences of whole
    outputs measure the model, not the target. Here each quantized value is computed from the
    quantized values that ``expected`` found before it, so what differs is the target's own doing:
    one linear, or product, and the float operators behind it.

    Args:
        expected: A quantized Program, or the target ``reference`` with one; gives the integers.
        target: Compiles :func:`feed_quantized` of that Program.
        batch: Inputs by name.
        steps: How far a quantized value may lie from the expected one.
        tolerance: For outputs of the Program that are floats, as in :func:`compare`.

    Returns:
        A row for each quantized value, in graph order, then one for each output.

    Raises:
        SparsefxError: When the Program has no quantized value.
    """
    program = expected if isinstance(expected, Program) else expected.program
    fed = feed_quantized(program)
    names = [n.removeprefix(_QUANTIZED) for n in fed.signature.outputs if n.startswith(_QUANTIZED)]
    ops = _operators(program)
    outputs = {name: node.name for name, node in program.outputs().items()}
    known = _trace(expected, batch, {*names, *outputs.values()})
    inputs = set(fed.signature.input_names)
    feeds = {f"{_FED}{name}": known[name] for name in names if f"{_FED}{name}" in inputs}
    found = target.compile(fed)(**batch, **feeds)
    pairs = [(name, known[name], found[f"{_QUANTIZED}{name}"]) for name in names]
    pairs += [(name, known[node], found[name]) for name, node in outputs.items() if node in known]
    rows = (difference(n, ops.get(n, "output"), a, b, tolerance, steps) for n, a, b in pairs)
    return Comparison(tuple(rows), (), ())


def feed_quantized(program: Program) -> Program:
    """Return a copy that takes its quantized values as inputs, and returns what it makes of them.

    For each ``sparsefx::quantize`` node ``q`` the copy has the input ``fed_q``, which everything
    that read ``q`` reads instead, and the output ``quantized.q``. A value whose sizes are no plain
    dynamic dimensions stays connected and is only returned.

    Raises:
        SparsefxError: When there is none.
    """
    fed = program.copy().eval()
    rewriter = Rewriter(fed, "compare")
    quantized = fed.graph.find_nodes(
        op="call_function", target=torch.ops.sparsefx.quantize.default, sort=True
    )
    if not quantized:
        raise SparsefxError(
            "the program has no quantized value",
            who="compare",
            hint="run quantize-prepare, calibrate, and quantize-convert before",
        )
    dims = {dim for spec in fed.signature.inputs for dim in spec.dims if isinstance(dim, str)}
    for node in quantized:
        fact = fed.shape_of(node)
        if fact is not None and all(isinstance(d, int) or d in dims for d in fact.dims):
            users = list(node.users)
            given = rewriter.add_input(InputSpec(f"{_FED}{node.name}", fact.dtype, fact.dims))
            for user in users:
                rewriter.replace_input(user, node, given)
        rewriter.set_output(f"{_QUANTIZED}{node.name}", node)
    rewriter.finish()
    return fed


def trace(
    program: Program, batch: Mapping[str, Tensor], nodes: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Run ``program`` in evaluation mode and return the values of its nodes by name.

    Args:
        program: What to run; its mode is restored.
        batch: Inputs by name.
        nodes: Names of the nodes to return; every call that gives a tensor by default.
    """
    program.signature.check(batch)
    wanted = set(tappable(program) if nodes is None else nodes)
    tracer = _Tracer(program.module, wanted)
    with program.evaluating():
        tracer.run(*(batch[name] for name in program.signature.input_names))
    return tracer.values


def tappable(program: Program) -> list[str]:
    """Return the names of the nodes whose values can be compared: the calls that give a tensor."""
    program.infer_shapes()
    return [
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    ]


class _Tracer(fx.Interpreter):
    """Runs a graph and keeps the values of the wanted nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}
        self._wanted = wanted

    def run_node(self, n: fx.Node) -> Argument:
        value: Any = super().run_node(n)
        if n.name in self._wanted and isinstance(value, Tensor):
            self.values[n.name] = value.detach().clone()
        return value  # type: ignore[no-any-return]  # whatever the node gives


def _trace(
    side: Program | Traced, batch: Mapping[str, Tensor], nodes: Iterable[str] | None
) -> dict[str, Tensor]:
    wanted = None if nodes is None else set(nodes)
    return trace(side, batch, wanted) if isinstance(side, Program) else side.trace(batch, wanted)


def _operators(side: Program | Traced) -> dict[str, str]:
    program = side if isinstance(side, Program) else getattr(side, "program", None)
    if not isinstance(program, Program):
        return {}
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return {node.name: callable_name(node.target).removesuffix(".default") for node in calls}


def difference(
    name: str, op: str, expected: Tensor, found: Tensor, tolerance: float = 0.0, steps: int = 0
) -> NodeDifference:
    """Compare two values of a node, as :func:`compare` does."""
    problem = ""
    if expected.shape != found.shape:
        problem = f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    elif expected.is_floating_point() != found.is_floating_point():
        problem = f"type {found.dtype}, expected {expected.dtype}"
    if problem:
        return NodeDifference(name, op, float("nan"), float("nan"), 1.0, problem, True)
    if expected.numel() == 0:
        return NodeDifference(name, op, 0.0, 0.0, 0.0, "", False)
    left, right = expected.detach().cpu().double(), found.detach().cpu().double()
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, 0.0, (left - right).abs())
    largest, scale = float(gap.max()), float(left.nan_to_num(0.0, 0.0, 0.0).abs().max())
    allowed = tolerance * max(1.0, scale) if expected.is_floating_point() else float(steps)
    if torch.bool in (expected.dtype, found.dtype):
        allowed = 0.0
    # Written so that a NaN on one side differs.
    differs = not largest <= allowed
    return NodeDifference(name, op, largest, scale, float((~same).double().mean()), "", differs)
