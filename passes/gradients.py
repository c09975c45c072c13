"""Gradients that a pass reads after a step of the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sparsefx.errors import TrainingError

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["gradient_of"]


def gradient_of(program: Program, name: str, *, who: str) -> Tensor:
    """Return the gradient that a parameter has after a step.

    Raises:
        TrainingError: It has none.
    """
    found = program.tensor(name).grad
    if found is None:
        raise TrainingError(
            "it has no gradient after the step",
            who=who,
            where=name,
            hint="call program.step() before optimizer.zero_grad(), and do not freeze it",
        )
    return found
