"""Weights that are no numbers: a model that holds one computes nothing but them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsefx.names import listed

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["describe_weights", "is_finite", "not_finite"]


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity.

    >>> is_finite(torch.full((9,), 3e38)), is_finite(torch.tensor([1.0, float("inf")]))
    (True, False)
    """
    # A sum is finite only where all terms are, and takes a tenth of the time; one that overflows
    # says nothing.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def not_finite(program: Program) -> tuple[str, ...]:
    """Return the names of the tensors that hold NaN, and of the parameters that hold infinity.

    Buffers may hold infinities: attention masks do, and observers that have seen nothing yet.
    """
    trained = {name for name, _ in program.module.named_parameters()}
    found = []
    for name, tensor in program.named_tensors().items():
        if not tensor.is_floating_point():
            continue
        if not is_finite(tensor) and (name in trained or bool(torch.isnan(tensor).any())):
            found.append(name)
    return tuple(found)


def describe_weights(names: tuple[str, ...]) -> str:
    """Return a sentence that names the first of the tensors."""
    return f"weights that are NaN or infinite: {listed(names)}"
