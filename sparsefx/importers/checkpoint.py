"""Checkpoints that another tool pruned: a Hugging Face folder with zeros, captured and locked."""

from __future__ import annotations

import re

import torch

from sparsefx.errors import ArtifactError
from sparsefx.huggingface import capture_pretrained
from sparsefx.importers.result import pass_text
from sparsefx.masks import find_masks
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program

__all__ = ["import_sparse_checkpoint"]

_ROLES = ("encoder", "pooler", "head", "embedding", "convolution", "other")


def import_sparse_checkpoint(
    place: str, *, labels: int | None = None, least: float = 0.05
) -> Program:
    """Capture a pruned checkpoint; its zeros become masks that are locked.

    The Program trains on with these zeros: fine-tune it, distil into it, quantize it. Matrices
    without zeros stay dense, and so do embedding tables (a padding row of zeros is no pruning).

    Args:
        place: Hugging Face id, or a folder with ``config.json``; zeros are plain zeros in it.
        labels: A fresh head of this size, as for ``capture_pretrained``.
        least: Share of zeros, over the matrices that have some, below which it counts as dense.

    Raises:
        ArtifactError: The checkpoint cannot be read, or it is dense.
    """
    program = capture_pretrained(place, labels=labels)
    lock = pass_text("pattern-lock", roles=_ROLES, exclude=_tables(program), on_no_match="ignore")
    locked = Pipeline.parse(lock).run(program, in_place=True)
    masks = [locked.tensor(site.mask) for site in find_masks(locked)]
    count = sum(mask.numel() for mask in masks)
    zeros = count - sum(int(torch.count_nonzero(mask)) for mask in masks)
    if not masks:
        why = "no matrix of it has a zero: it was not pruned"
    elif zeros < least * count:
        why = f"{zeros} zeros among {count} weights ({zeros / count:.2%}): it was not pruned"
    else:
        return locked
    raise ArtifactError(
        why,
        who="import_sparse_checkpoint",
        where=place,
        hint="masks that were saved beside the weights have to be multiplied in before",
    )


def _tables(program: Program) -> tuple[str, ...]:
    """Return expressions of embedding tables; a linear between two widths beside them is none."""
    nodes = program.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    return tuple(f"^{re.escape(str(node.args[0].target))}$" for node in nodes)
