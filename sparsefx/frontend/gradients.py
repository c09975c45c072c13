"""Whether a captured Program has the gradients of its model, tried on the example inputs.

A graph holds operators, whose gradients are known. A backward that a model writes itself, and
hooks, are not in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsefx.errors import first_line
from sparsefx.names import listed
from sparsefx.program import Program

__all__ = ["compare_gradients"]

logger = logging.getLogger(__name__)

# Both sides run the same kernels in the same order. Only where several paths meet may their
# gradients be added in another order: a few roundings, of terms up to the largest gradient.
_ROUNDINGS = 8


def compare_gradients(
    model: nn.Module,
    program: Program,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    doubts: Iterable[str],
) -> None:
    """Warn of parameters whose gradients are not those of the model.

    This costs a backward of each and as much memory as their gradients, so it is for models alone
    that do what may change gradients.

    Args:
        model: What was captured. Its ``grad`` stay as they are; its hooks run.
        program: What it became.
        expected: Outputs of the model, computed with gradients.
        found: Those of the Program, equal to ``expected``.
        doubts: What the model does that may change gradients.
    """
    causes = ", ".join(doubts)
    try:
        wanted = _gradients(model.named_parameters(), expected)
    except Exception as error:  # of code of a user, which may raise anything
        why = first_line(error)
        logger.warning("capture: gradients not compared (%s): the model's fail: %s", causes, why)
        return
    sums: dict[str, Tensor | None] = {}
    for name, value in wanted.items():  # two parameters on one memory are one in the Program
        key = program.canonical(name)
        parts = [part for part in (sums.get(key), value) if part is not None]
        sums[key] = torch.stack(parts).sum(0) if len(parts) > 1 else next(iter(parts), None)
    ours = _gradients(program.module.named_parameters(), found)
    noise = _noise([*sums.values(), *ours.values()])
    if names := [name for name, value in sums.items() if _differ(value, ours.get(name), noise)]:
        logger.warning(
            "capture: training the Program is not training the model: the gradients of %s differ, "
            "as a graph does not hold %s. For inference it is right. Write a gradient of your own "
            "as y + (f(y) - y).detach(), set hooks on the Program's own parameters, or train the "
            "model first and capture it then",
            *(listed(names, 5), causes),
        )


def _gradients(
    parameters: Iterable[tuple[str, nn.Parameter]], outputs: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Return the gradients of one random sum of the outputs, which nothing cancels."""
    trained = {name: tensor for name, tensor in parameters if tensor.requires_grad}
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(value.shape, generator=generator) for value in outputs.values()]
    ends = [
        (value, direction.to(value))
        for value, direction in zip(outputs.values(), directions, strict=True)
        if value.requires_grad
    ]
    if not (ends and trained):
        return dict.fromkeys(trained)
    values, weights = zip(*ends, strict=True)
    found = torch.autograd.grad(values, [*trained.values()], weights, allow_unused=True)
    return {
        name: None if gradient is None else _plain(gradient)
        for name, gradient in zip(trained, found, strict=True)
    }


def _plain(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return torch.view_as_real(dense) if dense.is_complex() else dense


def _noise(gradients: Iterable[Tensor | None]) -> float:
    return max(
        (
            _ROUNDINGS * torch.finfo(gradient.dtype).eps * _largest(gradient)
            for gradient in gradients
            if gradient is not None
        ),
        default=0.0,
    )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0


def _differ(expected: Tensor | None, found: Tensor | None, noise: float) -> bool:
    if expected is None or found is None:
        one = found if expected is None else expected
        return one is not None and bool((one != 0).any())
    if torch.equal(expected, found):
        return False
    if not torch.equal(expected.isnan(), found.isnan()):
        return True
    gap = float((expected - found).nan_to_num(0.0).abs().max())
    is_short = expected.dtype in (torch.float16, torch.bfloat16)
    return gap > (0.05 if is_short else 1e-3) * _largest(expected) + noise
