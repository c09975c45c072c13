"""One-shot sensitivity: what it costs to prune, or to quantize, one linear and no other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor, fx

from sparsefx.errors import PassError
from sparsefx.graph.fake_quantization import fake_quantize, fake_quantize_weight
from sparsefx.passes.analyses.dataflow import weight_of, whole_graph
from sparsefx.passes.prune.loss_curves import LossCurve
from sparsefx.passes.prune.patterns import GroupWise, Pattern, mask_for, parse_pattern, unfit
from sparsefx.passes.selection import Selection, select_weights

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["LEVELS", "Sensitivity", "measure_sensitivity"]

aten = torch.ops.aten

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Sparsities that are measured unless others are asked for."""
_WHO = "sensitivity"
Batch = Mapping[str, Tensor]
Loss = Callable[[Mapping[str, Tensor], int], Tensor]
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        base: The loss of the untouched Program.
        curves: Loss increase by sparsity, for each weight in graph order.
        int8: Loss increase with the weight int8 (symmetric, a scale for each output channel) and
            its input uint8 (affine, the range of each batch), for each weight.
    """

    base: float
    curves: dict[str, LossCurve]
    int8: dict[str, float]


def measure_sensitivity(
    program: Program,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    levels: Sequence[float] = LEVELS,
    pattern: str = "unstructured",
    roles: Sequence[str] = ("encoder",),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Prune, then quantize, each linear alone, and see what the loss does.

    Weights of small magnitude go, nothing is trained, and the Program stays as it is. Of each batch
    only what comes after the changed linear is computed anew.

    Args:
        program: In the mode in which it is to be measured, mostly ``eval()``.
        batches: Inputs by name; all are held to the same weight in the mean.
        loss: From the outputs, and the number of the batch, to a scalar.
        levels: Sparsities, 0 < level < 1.
        pattern: ``unstructured``, a block such as ``1x4``, or N:M.
        roles: Roles of the weights to look at.
        include: Regular expressions; a weight must match one of them, when there are any.
        exclude: Regular expressions; a weight must match none.

    Raises:
        PassError: The pattern is none, or does not fit a weight or a level; a weight has a mask;
            there is no batch; or the loss of the untouched Program is not finite.

    >>> from sparsefx.testing import small_program
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> layer.weight = torch.nn.Parameter(torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
    >>> program = small_program(layer, input=torch.ones(1, 4))
    >>> def loss(outputs, number):
    ...     return (10 - outputs["output"]).sum()
    >>> found = measure_sensitivity(
    ...     program, [{"input": torch.ones(1, 4)}], loss, levels=(0.25, 0.5), roles=("other",)
    ... )
    >>> found.base, found.curves["weight"].points
    (0.0, ((0.25, 1.0), (0.5, 3.0)))
    """
    places = _places(program, select_weights(program, roles, include, exclude))
    shape = _checked_pattern(program, places, levels, pattern)
    changes: dict[float | None, Change] = {level: _pruned(level, shape) for level in levels}
    changes[None] = _quantized
    base, sums = _means(program, batches, loss, places, changes)
    if not math.isfinite(base):
        raise PassError(f"the loss of the untouched model is {base}", who=_WHO)
    curves = {
        name: LossCurve(tuple((level, sums[name, level] - base) for level in sorted(levels)))
        for name in places
    }
    return Sensitivity(base, curves, {name: sums[name, None] - base for name in places})


def _places(program: Program, found: Selection) -> dict[str, tuple[fx.Node, ...]]:
    """Return the linears that read each chosen weight."""
    if found.masked:
        raise PassError(
            f"{len(found.masked)} weights have masks, which decide what is zero",
            who=_WHO,
            where=found.masked[0],
            hint="run fold-masks before",
        )
    readers = {name: _readers(program.graph, name) for name in found.chosen}
    return {name: nodes for name, nodes in readers.items() if nodes}


@torch.no_grad()
def _means(
    program: Program,
    batches: Iterable[Batch],
    loss: Loss,
    places: Mapping[str, tuple[fx.Node, ...]],
    changes: Mapping[float | None, Change],
) -> tuple[float, dict[tuple[str, float | None], float]]:
    """Return the mean loss of the untouched Program, and that of each place with each change."""
    flow = whole_graph(program.graph)
    later = {
        name: set(nodes).union(*(nx.descendants(flow, node) for node in nodes))
        for name, nodes in places.items()
    }
    cases = list(itertools.product(places, changes))
    sums = dict.fromkeys(cases, 0.0)
    base, count = 0.0, 0
    for count, batch in enumerate(batches, start=1):
        runner = _Runner(program.module)
        base += float(loss(runner.whole(batch), count - 1))
        for name, level in cases:
            outputs = runner.altered(places[name], later[name], changes[level])
            sums[name, level] += float(loss(outputs, count - 1))
    if not count:
        raise PassError("there is no batch to measure on", who=_WHO)
    return base / count, {case: total / count for case, total in sums.items()}


class _Runner(fx.Interpreter):
    """Runs a graph once, and then parts of it with one linear changed."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._nodes: Sequence[fx.Node] = ()
        self._change: Change | None = None
        self._known: dict[fx.Node, Any] = {}

    def whole(self, batch: Batch) -> dict[str, Tensor]:
        """Run all of it and remember every value."""
        inputs = [batch[str(n.target)] for n in self.graph.find_nodes(op="placeholder")]
        outputs: dict[str, Tensor] = self.run(*inputs)
        self._known = dict(self.env)
        return outputs

    def altered(
        self, nodes: Sequence[fx.Node], later: set[fx.Node], change: Change
    ) -> dict[str, Tensor]:
        """Run ``later`` alone, with the linears ``nodes`` changed."""
        self._nodes, self._change = nodes, change
        known = {n: v for n, v in self._known.items() if n not in later and n.op != "output"}
        outputs: dict[str, Tensor] = self.run(initial_env=known)
        self._nodes, self._change = (), None
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; of a changed linear input and weight are others."""
        if self._change is None or n not in self._nodes:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        value, weight = self._change(args[0], args[1])
        return torch.nn.functional.linear(value, weight, *args[2:])


def _checked_pattern(
    program: Program, names: Iterable[str], levels: Sequence[float], text: str
) -> Pattern:
    try:
        pattern = parse_pattern(text)
    except ValueError as error:
        raise PassError(f"pattern={text!r}: {error}", who=_WHO, where="pattern") from error
    most = pattern.sparsity if isinstance(pattern, GroupWise) else 1.0
    if max(levels) > most:
        raise PassError(
            f"{pattern} ends at a sparsity of {most:g}, not {max(levels):g}",
            who=_WHO,
            where="levels",
        )
    for name in names:
        end = most if isinstance(pattern, GroupWise) else 0.0
        if why := unfit(program.tensor(name).shape, end, pattern):
            raise PassError(why, who=_WHO, where=name)
    return pattern


def _pruned(level: float, shape: Pattern) -> Change:
    def change(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return value, weight * mask_for(weight.abs(), level, shape)

    return change


def _quantized(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    now = torch.zeros((), dtype=torch.int64, device=value.device)
    low, high = torch.aminmax(value)
    seen = fake_quantize(value, low, high, now, 0, 0, 255)
    return seen, fake_quantize_weight(weight, now, 0, -127, 127, 0)


def _readers(graph: fx.Graph, name: str) -> tuple[fx.Node, ...]:
    found = graph.find_nodes(op="call_function", target=aten.linear.default)
    return tuple(node for node in found if weight_of(node) == name)
