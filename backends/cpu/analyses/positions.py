"""Tables of positions that a model adds to its embeddings without an embedding operator.

For example a buffer [1, most, channels] of sines and cosines: `x + self.pe[:, : x.shape[1]]`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import identity_source, shape_of
from sparsefx.backends.cpu.analyses.host import Host, attempt

__all__ = ["position_table"]

aten = torch.ops.aten
_PASSED = (
    *(aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int),
    *(aten.expand.default, aten.permute.default, aten.view.default, aten.reshape.default),
)


def position_table(host: Host, node: object, added: fx.Node) -> Tensor | None:
    """The table [positions, channels] whose first rows `node` is, one for each token; else None.

    Args:
        host: Evaluates what depends on no activation.
        node: What is added to embeddings.
        added: The sum, [batch, sequence, channels] in some order of the first two.
    """
    if not isinstance(node, fx.Node) or node not in host.nodes:
        return None
    channels, constant = shape_of(added)[-1], node
    while host.constant(constant) is None:
        before = constant.args[0] if constant.args else None
        moves = constant.target in _PASSED or identity_source(constant) is not None
        if not moves or not isinstance(before, fx.Node):
            return None
        constant = before
    table = host.constant(constant)
    if table is None or not isinstance(channels, int) or table.shape[-1] != channels:
        return None
    if constant is node or table.numel() != max(table.shape[:-1]) * channels:
        return None
    table = table.reshape(-1, channels)
    return table if attempt(partial(_first_rows, host, node, table)) else None


def _first_rows(host: Host, node: fx.Node, table: Tensor) -> bool:
    """Whether the node is the table's first rows, along the dimension of the tokens, for sizes."""
    lengths = {n for _, n in host.sizes(((3, 1), (3, 2), (3, 5))) if n <= len(table)}
    for length in lengths:
        value = host.for_sizes(node, 3, length)
        if value is None or value.numel() != length * table.shape[1]:
            return False
        if not torch.equal(value.reshape(length, -1), table[:length]):
            return False
    return bool(lengths)
