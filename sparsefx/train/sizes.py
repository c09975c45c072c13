"""Sizes of batches, held to what a Program takes before any of them is computed."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product

import numpy as np

from sparsefx.errors import TrainingError
from sparsefx.inputs.conditions import broken
from sparsefx.program import Program
from sparsefx.train.data.batches import Encoded

__all__ = ["batch_sizes", "check_sizes", "fixed_batch", "scored_sizes"]

_PLACES = ("batch", "sequence")


def fixed_batch(program: Program) -> int | None:
    """Return the only number of texts that a Program takes at once; None if it takes others."""
    sizes = (spec.dims[0] for spec in program.signature.inputs if spec.dims)
    return next((size for size in sizes if isinstance(size, int)), None)


def batch_sizes(texts: int, size: int) -> set[int]:
    """Return the sizes of the batches that so many texts are cut into.

    >>> batch_sizes(22, 8), batch_sizes(5, 8)
    ({8, 6}, {5})
    """
    return {min(texts, size), texts % size} - {0}


def scored_sizes(program: Program, texts: int, size: int) -> set[int]:
    """Return the sizes of the batches in which so many texts are scored: the Program's own, or so.

    A last batch of a fixed size is filled, others are as short as what is left.
    """
    fixed = fixed_batch(program)
    return {fixed} if fixed else batch_sizes(texts, size)


def check_sizes(program: Program, data: Encoded, sizes: Collection[int], *, where: str) -> None:
    """Refuse texts of which some batch would have a size that a Program does not take.

    Args:
        program: May have fixed sizes, and conditions on others.
        data: The texts; those of a batch are padded to its longest.
        sizes: Texts that are computed at once.
        where: Who computes them.

    Raises:
        TrainingError: Names a size, and what the Program takes.
    """
    signature = program.signature
    dims = signature.tokens.dims if signature.tokens else ()
    fixed = [f"{at} == {dim}" for at, dim in zip(_PLACES, dims, strict=False) if type(dim) is int]
    if not fixed and not signature.conditions:
        return
    # A text is the longest of some batch if enough others are no longer.
    longest = np.unique(np.sort(data.lengths)[min(*sizes, len(data)) - 1 :]).tolist()
    for found in product(sorted(sizes, reverse=True), longest):
        known = dict(zip((*_PLACES, *map(str, dims)), found * 2, strict=False))
        missed = broken((*fixed, *signature.conditions), known)
        if missed is not None:
            raise TrainingError(
                f"there are batches of {found[0]} texts with {found[1]} tokens, and the model "
                f"holds for {missed} alone",
                who="session",
                where=where,
                hint="capture it with a dynamic batch and sequence; a fixed batch needs a "
                "batch_size like it that leaves no text over",
            )
