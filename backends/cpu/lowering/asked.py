"""A format that was asked for: how many linears could have it, and why the others could not."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefx.backends.cpu.lowering.layer import Layer
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.plan.weights import DOTS, FORMATS, SHORT, TILED
from sparsefx.errors import TargetError

__all__ = ["check_format"]


def check_format(format: str, isa: Isa, layers: Sequence[Layer]) -> str:
    """What is to be told of a format that was asked for, "" if every linear has it.

    Raises:
        TargetError: No linear can have it.
    """
    without = [layer for layer in layers if format not in layer.choice.costs]
    if not format or not without:
        return ""
    why = _obstacle(format, isa, without)
    if len(without) < len(layers):
        having = len(layers) - len(without)
        return f"{having} of {len(layers)} linears can have format={format!r}; for the others {why}"
    possible = [f for f in FORMATS if any(f in layer.choice.costs for layer in layers)]
    raise TargetError(
        f"no linear can have it: {why}",
        who=f"cpu{{format={format!r}}}",
        hint=f"formats that are possible here: {', '.join(possible)}",
    )


def _obstacle(format: str, isa: Isa, layers: Sequence[Layer]) -> str:
    """Why these linears cannot have a format: their type, or the instruction set."""
    if format in TILED | DOTS and not any(layer.integer for layer in layers):
        return "it is for int8 weights, and theirs are fp32"
    if format not in TILED | DOTS and all(layer.integer for layer in layers):
        return "it is for fp32 weights, and theirs are int8"
    if format in SHORT and not format.endswith(isa.short or "none"):
        return f"it takes precision={format.rpartition('_')[2]!r}"
    if format in DOTS:
        return f"{isa.name} has no dot products of bytes"
    return f"{isa.name} has no tiles" if not isa.has_tiles else "too few of their weights are zero"
