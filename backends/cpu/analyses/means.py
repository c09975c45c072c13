"""Means over the real tokens of a sequence.

    (states * mask).sum(1) / mask.sum(1)      states.masked_fill(mask == 0, 0).sum(1) / count
    bmm(mask / count, states)                 where(mask, states, 0).mean(1) * (length / count)

There are many spellings, so none is matched: what is computed from the states of all tokens and
from one input is tried on numbers. It is a mean if it gives that of the tokens where the input is
not 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import shape_of
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.regions import Region, Regions
from sparsefx.program import Program

__all__ = ["Mean", "find_means"]

aten = torch.ops.aten

_SUMS = (
    *(aten.sum.dim_IntList, aten.mean.dim, aten.bmm.default, aten.matmul.default),
    aten.einsum.default,
)
_INNER = frozenset(
    (
        *(*_SUMS, aten.mul.Tensor, aten.div.Tensor, aten.masked_fill.Scalar, aten.where.self),
        *(
            aten.masked_fill.Tensor,
            aten.where.ScalarOther,
            aten.transpose.int,
            aten.permute.default,
        ),
        *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.select.int),
        *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default),
        *(aten.expand.default, aten.sym_size.int, aten.to.dtype, aten.slice.Tensor),
    )
)
_FAR = 8
"""Operators from the sum over tokens to the end, at most."""


@dataclass(frozen=True, eq=False)
class Mean:
    """One spelling.

    Attributes:
        source: The states of all tokens, [batch, sequence, channels].
        inner: The nodes of the spelling whose values nothing else reads.
        padding: The input that is 0 at padding.
    """

    source: fx.Node
    inner: frozenset[fx.Node]
    padding: str


def find_means(program: Program, host: Host) -> dict[fx.Node, Mean]:
    """The means of a graph, by their last node."""
    if not all(isinstance(d, str) for d in host.dims):
        return {}
    regions = Regions(host, _INNER.__contains__)
    found: dict[fx.Node, Mean] = {}
    for node in program.graph.nodes:
        if node.target in _SUMS and node not in host.nodes:
            ends = filter(_is_vector, regions.onward(node, _FAR))
            known = [(last, mean) for last in ends if (mean := _mean(regions, last))]
            found.update(known[-1:])
    return found


def _is_vector(node: fx.Node) -> bool:
    """Whether a node is one vector of each sequence, or a row of one."""
    rows = shape_of(node)[:-1]
    return isinstance(rows[0] if rows else 1, str) and set(rows[1:]) <= {1} and len(rows) < 3


def _mean(regions: Regions, last: fx.Node) -> Mean | None:
    """The mean that ends with a node, if one does."""
    channels = shape_of(last)[-1]
    for source in reversed(regions.around(last)):
        shape = shape_of(source)
        if (
            len(shape) != 3
            or shape[2] != channels
            or not all(isinstance(n, str) for n in shape[:2])
        ):
            continue
        region = regions.between(source, last)
        if region is not None and (padding := _padding(region, channels)):
            return Mean(source, region.inner, padding)
    return None


def _padding(region: Region, channels: int) -> str | None:
    """The input by which a region is the mean of the real tokens, if it is one."""
    mask = region.host.only_mask(region.inputs)
    if mask is None:
        return None

    def is_mean(given: Tensor) -> bool:
        real = (given != 0).long()
        generator = torch.Generator().manual_seed(0)
        states = torch.rand(*given.shape, channels, generator=generator) - 0.5
        found = region.run(states, {mask: given.to(mask.meta["val"].dtype)})
        expected = (states * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        if not isinstance(found, Tensor) or found.numel() != expected.numel():
            return False
        return torch.allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-5)

    return str(mask.target) if region.host.holds(mask, is_mean) else None
