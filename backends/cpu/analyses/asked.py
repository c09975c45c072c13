"""Inputs on which the rule of an index is tried: all that a model may be asked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.host import Host, at_longest, attempt
from sparsefx.backends.cpu.plan.indices import Trial

__all__ = ["index_trials"]

_SIZES = ((2, 5), (3, 9), (1, 4))
_FEW = 3


def index_trials(host: Host, node: fx.Node, special: int) -> list[Trial] | None:
    """Inputs by name, with the index that a node gives for each.

    Among them are every value that an input may have, and the longest sequence.

    Args:
        host: Evaluates the node.
        node: The index of an embedding.
        special: A value that many of the inputs get, as the token of padding.

    Returns:
        None where it is not known which values an input may have.
    """
    counts = {source: host.vocabulary(source) for source in host.inputs}
    known = {source: count for source, count in counts.items() if count is not None}
    if len(known) < len(counts):
        return None
    generator = torch.Generator().manual_seed(0)

    def few(size: tuple[int, int]) -> dict[fx.Node, Tensor]:
        drawn = {n: torch.randint(0, _FEW, size, generator=generator) for n in known}
        return {n: (special + values) % known[n] for n, values in drawn.items()}

    def long(length: int) -> Trial:
        (size,) = host.sizes([(1, length)])
        found = _tried(host, node, few(size))
        if not host.admits(size) or found[1].shape[1] not in (1, size[1]):
            raise IndexError(f"the model takes no {length} tokens")
        return found

    inputs = [few(size) for size in host.sizes(_SIZES)]
    for source in known:
        inputs += [{**few((len(v), v.shape[1])), source: v} for v in host.trials(source)]
    trials = attempt(lambda: [_tried(host, node, each) for each in inputs])
    last = at_longest(long, host.longest)
    return None if trials is None or last is None else [*trials, last]


def _tried(host: Host, node: fx.Node, given: Mapping[fx.Node, Tensor]) -> Trial:
    """The inputs by name, and the node as [batch or 1, sequence]."""
    known = {source: value.to(source.meta["val"].dtype) for source, value in given.items()}
    index: NDArray[np.int64] = host.evaluate([node], known)[node].numpy()
    return {str(n.target): value.numpy() for n, value in given.items()}, np.atleast_2d(index)
