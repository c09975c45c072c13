"""Tables that embeddings read: floats, or the integers that `quantize-embeddings` stores."""

from __future__ import annotations

import torch
from torch import fx

from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.values import Table

__all__ = ["stored_table"]


def stored_table(host: Host, node: fx.Node) -> Table | None:
    """The table that a node is, as it is stored; None if it depends on an input.

    int8 rows stay int8 if they have a scale each, or all have the same, and zero means 0. Any other
    quantization gives the floats that it stands for.
    """
    return _integers(host, node) or _floats(host, node)


def _floats(host: Host, node: fx.Node) -> Table | None:
    rows = host.constant(node)
    return None if rows is None else Table(rows)


def _integers(host: Host, node: fx.Node) -> Table | None:
    if node.target is not torch.ops.sparsefx.dequantize.default:
        return None
    stored, scale, zero, axis = (*node.args, *[None] * 4)[:4]
    rows, scales, zeros = (
        host.constant(each) if isinstance(each, fx.Node) else None for each in (stored, scale, zero)
    )
    if rows is None or scales is None or zeros is None:
        return None
    by_row = scales.numel() == 1 or axis == 0
    if rows.dtype != torch.int8 or not by_row or bool(zeros.any()):
        return None
    return Table(rows, scales.detach().float().reshape(-1).expand(len(rows)))
