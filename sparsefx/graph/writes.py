"""Which tensors were written to: what is derived of their values is kept until then."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["count_optimizer_steps"]


@cache
def count_optimizer_steps() -> None:
    """From now on every optimizer's step counts as a write to the parameters that it changed.

    PyTorch counts writes (``Tensor._version``), but not those of fused optimizers.
    """
    register_optimizer_step_post_hook(_count)


def _count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return  # what torch.compile makes of a step counts its writes itself
    for group in optimizer.param_groups:
        increment_version(p for p in group["params"] if p.grad is not None)
