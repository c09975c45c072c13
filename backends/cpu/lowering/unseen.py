"""Whether what runs in PyTorch reads the padding that a plan leaves out.

A plan hands over zeros where the model computes something of padding. That is right as long as what
comes after keeps padding apart from real tokens, as a classifier of each token does, or an
attention or a sum with the mask; a mean over all tokens does not. The graph is not matched but
tried: with other numbers in place of the zeros, the outputs of real tokens must stay the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.axes import Layout, arranged
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.values import Rows
from sparsefx.backends.cpu.plan.plan import SEQUENCES

__all__ = ["Handed", "reads_padding"]

_FREE = ((5, 7), (5, 4), (5, 2), (5, 16))
"""Sequences, and their length, where a Program takes any: the first that it admits are tried."""


@dataclass(frozen=True, eq=False)
class Handed:
    """A node whose value a plan hands over.

    Attributes:
        node: The node.
        rows: Where the plan has it.
        layout: How its dimensions lie in these rows.
        zero: Whether the model has zeros at padding there too.
    """

    node: fx.Node
    rows: Rows
    layout: Layout
    zero: bool


def reads_padding(
    host: Host, outputs: Sequence[fx.Node], handed: Sequence[Handed], padding: str
) -> bool:
    """Whether outputs of real tokens change with what is handed over of padding.

    Args:
        host: Evaluates what runs in PyTorch.
        outputs: Of the graph.
        handed: All that the plan hands over.
        padding: The input that is 0 at padding.

    Returns:
        True too where nothing can be tried, as the sizes that are tried are none of the model's.
    """
    for batch, length in host.sizes(_FREE):
        try:
            return _read_at(host, outputs, handed, padding, (batch, length))
        except (IndexError, RuntimeError):  # a table ends before, or the model takes multiples
            continue
    return True


def _read_at(
    host: Host,
    outputs: Sequence[fx.Node],
    handed: Sequence[Handed],
    padding: str,
    sizes: tuple[int, int],
) -> bool:
    """The same for so many sequences of this length."""
    batch, length = sizes
    inputs = host.placeholders(outputs)
    real = (torch.arange(length) < (length + 1) // 2).long()
    for number in (0, 1):  # of other inputs, such as types of tokens
        known = {n: value * number for n, value in host.sample(inputs, batch, length).items()}
        (source,) = (node for node in inputs if str(node.target) == padding)
        known[source] = real.expand(batch, length).to(known[source].dtype)
        found = []
        for other in (0.0, 1.0):
            given = {each.node: _values(each, batch, real, other) for each in handed}
            values = host.evaluate(outputs, known | given)
            found.append([_at_real_tokens(values[node], real) for node in outputs])
        if not all(itertools.starmap(_alike, zip(*found, strict=True))):
            return True
    return False


def _alike(zeros: Tensor, others: Tensor) -> bool:
    return torch.allclose(zeros, others, rtol=1e-4, atol=1e-6, equal_nan=True)


def _values(handed: Handed, batch: int, real: Tensor, other: float) -> Tensor:
    """Random numbers for a node: those of real tokens are always the same, `other` scales more."""
    buffer, generator = handed.rows.buffer, np.random.default_rng(0)
    tokens = 1 if buffer.space == SEQUENCES else len(real)
    values = generator.normal(0, 1, (batch, tokens, buffer.rows)).astype(np.float32)
    if buffer.space != SEQUENCES:
        values[:, real.numpy() == 0] *= 0.0 if handed.zero else other
    return torch.from_numpy(arranged(values, handed.layout))


def _at_real_tokens(value: Tensor, real: Tensor) -> Tensor:
    """A tensor as fp64, with 0 in place of what belongs to a token of padding."""
    value = value.double()
    for place, size in enumerate(value.shape):
        if size == len(real):
            along = [-1 if n == place else 1 for n in range(value.dim())]
            value = value.masked_fill(real.reshape(along) == 0, 0)
    return value
