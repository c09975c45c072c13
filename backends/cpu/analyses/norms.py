"""RMS norms: channels divided by the root of the mean of their squares, times a weight.

    weight * (x * rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
    x / sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

There are many spellings, one of them an operator of torch, so none is matched: what is computed
from the channels of a token and from constants is tried on numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import shape_of
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.regions import Region, Regions
from sparsefx.program import Program

__all__ = ["RmsNorm", "find_norms"]

aten = torch.ops.aten

_ROOTS = (aten.rsqrt.default, aten.sqrt.default, aten.rms_norm.default)
_INNER = frozenset(
    (
        *(*_ROOTS, aten.pow.Tensor_Scalar, aten.square.default, aten.reciprocal.default),
        *(aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.to.dtype),
        *(aten.mean.dim, aten.sum.dim_IntList),
    )
)
_FAR = 6
"""Operators from the root to the end, at most."""


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """One spelling.

    Attributes:
        source: What is divided.
        inner: The nodes of the spelling whose values nothing else reads.
        weight: fp32 [channels].
        epsilon: What is added to the mean of squares.
    """

    source: fx.Node
    inner: frozenset[fx.Node]
    weight: Tensor
    epsilon: float


def find_norms(program: Program, host: Host) -> dict[fx.Node, RmsNorm]:
    """The RMS norms of a graph, by their last node."""
    regions = Regions(host, _INNER.__contains__)
    found: dict[fx.Node, RmsNorm] = {}
    for node in program.graph.nodes:
        if _is_root(node) and node not in host.nodes:
            ends = regions.onward(node, _FAR)
            known = [(last, norm) for last in ends if (norm := _norm(regions, last))]
            found.update(known[-1:])
    return found


def _is_root(node: fx.Node) -> bool:
    """Whether a node takes a root of its input, or is a norm by itself."""
    halves = node.target is aten.pow.Tensor_Scalar and abs(node.args[1]) == 0.5  # type: ignore[arg-type]
    return halves or node.target in _ROOTS


def _norm(regions: Regions, last: fx.Node) -> RmsNorm | None:
    """The norm that ends with a node, if one does."""
    shape = shape_of(last)
    if not shape or not isinstance(shape[-1], int) or shape[-1] < 2:
        return None
    for source in reversed(regions.around(last)):
        if source is last or shape_of(source) != shape:
            continue
        region = regions.between(source, last)
        found = _read(region, shape[-1]) if region is not None and not region.inputs else None
        if region is not None and found is not None:
            return RmsNorm(source, region.inner, *found)
    return None


def _read(region: Region, channels: int) -> tuple[Tensor, float] | None:
    """Weight and epsilon of a region, if it is an RMS norm."""
    shape = [2 if isinstance(size, str) else size for size in shape_of(region.source)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    trials = [(x * size, region.run(x * size, {})) for size in (1.0, 1e-3, 30.0)]
    ones = region.run(torch.ones(shape), {})
    if not isinstance(ones, Tensor) or ones.shape != x.shape:
        return None
    row = ones.reshape(-1, channels)[0]
    for epsilon in _numbers(region):
        weight = _stored(region, row * (1 + epsilon) ** 0.5)
        pairs = ((rms_norm(x, weight, epsilon), y) for x, y in trials)
        if all(torch.allclose(expected, y, rtol=1e-5, atol=1e-7) for expected, y in pairs):
            return weight, epsilon
    return None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The RMS norm over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def _numbers(region: Region) -> list[float]:
    """What may be the epsilon of a region."""
    unsaid = any(node.target is aten.rms_norm.default for node in region.nodes)
    found = [torch.finfo(region.kind).eps] * unsaid + [0.0]
    for node in region.nodes:
        found += [x for x in node.args if isinstance(x, float)]
    for table in region.host.evaluate(region.tables, {}).values():
        if isinstance(table, Tensor) and table.numel() == 1:
            found.append(float(table))
    return [x for x in dict.fromkeys(found) if 0 <= x < 1]


def _stored(region: Region, weight: Tensor) -> Tensor:
    """The tensor of the graph that is this weight but for rounding, else the weight itself."""
    values = region.host.evaluate(region.tables, {})
    for table in (values[node] for node in region.tables):
        alike = isinstance(table, Tensor) and table.shape == weight.shape
        if alike and torch.allclose(table.float(), weight, rtol=1e-5, atol=1e-9):
            found: Tensor = table.detach().float()
            return found
    return weight
