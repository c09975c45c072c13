"""Devices: where the constants that a graph makes are put."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sparsefx.errors import ProgramError

__all__ = ["as_device", "move_constants"]


def as_device(given: object) -> torch.device:
    """Return a device, or that of the given name.

    Raises:
        ProgramError: It is none, such as a type of numbers: those of a graph are set by capture.
    """
    hint = "give a device such as 'cpu' or 'cuda:0'"
    if isinstance(given, torch.dtype):
        hint = f"convert the model, model.to({given}), and capture it"
    try:
        return torch.device(given)  # type: ignore[call-overload, no-any-return]  # what it refuses
    except (TypeError, RuntimeError):
        raise ProgramError(
            f"{given!r} is no device", who="program", where="to", hint=hint
        ) from None


def move_constants(graph: fx.Graph, device: torch.device) -> None:
    """Let what the graph makes be made on ``device``."""

    def moved(value: Any) -> Any:
        return fx.node.map_aggregate(
            value, lambda each: device if isinstance(each, torch.device) else each
        )

    for node in graph.nodes:
        node.args, node.kwargs = moved(node.args), moved(node.kwargs)
