"""Weights that are no numbers: a model that holds one computes nothing but them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["not_finite", "told"]


def not_finite(program: Program) -> tuple[str, ...]:
    """Return the names of the tensors that hold NaN, and of the parameters that hold infinity.

    Buffers may hold infinities: attention masks do, and observers that have seen nothing yet.
    """
    trained = {name for name, _ in program.module.named_parameters()}
    found = []
    for name, tensor in program.named_tensors().items():
        if not tensor.is_floating_point():
            continue
        is_fine = torch.isfinite(tensor) if name in trained else ~torch.isnan(tensor)
        if not bool(is_fine.all()):
            found.append(name)
    return tuple(found)


def told(names: tuple[str, ...]) -> str:
    """Return a sentence that names the first of the tensors."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"weights that are NaN or infinite: {', '.join(names[:3])}{more}"
