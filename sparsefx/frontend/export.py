"""torch.export of a model, with errors that name the line and a way out."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from sparsefx.errors import CaptureError, first_line
from sparsefx.frontend.agreement import in_mode
from sparsefx.frontend.places import place
from sparsefx.frontend.watch import Trace, watched

__all__ = ["export"]

_EXPORTED: Final = (
    *(Tensor, torch.SymInt, torch.SymFloat, torch.SymBool),
    *(int, float, complex, str, type(None)),
)
_ON_VALUES: Final = (
    "what it does there depends on the value of a tensor, and a graph does the same for all values"
)
_HINT_VALUES: Final = (
    "compute both ways and choose with torch.where, or decide by the configuration, a size or an "
    "attribute of the module"
)
_HINTS: Final = {  # of layers of torch that look at values
    "_detect_is_causal_mask": "give is_causal=True or is_causal=False along with the mask: "
    "without it torch looks into the mask",
    "_BatchNorm.forward": "give the batch norm a momentum: with None torch computes it from the "
    "number of batches so far",
}


def export(
    model: nn.Module, inputs: dict[str, Tensor], dims: Mapping[str, Mapping[int, str]]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Export a model in training mode, in which every dropout shows its rate.

    Args:
        model: It is left as it is.
        inputs: The example inputs.
        dims: The names of the dynamic dimensions of each.

    Returns:
        What was exported, and why its gradients may be others than the model's.

    Raises:
        CaptureError: It cannot be exported; names the module and the line.
    """
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(found, auto) for name, found in dims.items()}
    with in_mode(model, training=True), watched(model) as trace:
        try:
            found = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise _export_error(error, model, trace) from error
    return found, tuple(trace.doubts)


def _export_error(error: Exception, model: nn.Module, trace: Trace) -> CaptureError:
    where = type(model).__name__
    kinds = (type(leaf) for leaf in pytree.tree_leaves(trace.returned))
    strange = next((kind for kind in kinds if not issubclass(kind, _EXPORTED)), None)
    if not trace.entered and strange is not None:
        return CaptureError(
            f"its forward returns {strange.__name__}, which torch.export cannot look into",
            who="capture",
            where=where,
            hint="return a tensor, or a tuple, list, dict or ModelOutput of tensors; a module "
            "around the model can do so",
        )
    # The innermost line first; before the model is entered, none is the model's.
    frames = [*traceback.walk_tb(error.__traceback__)][::-1] if trace.entered else []
    line = place(frames)
    failed = f"torch.export failed at {line}" if line else "torch.export failed"
    where = trace.entered[-1] if trace.entered else where
    if isinstance(error, GuardOnDataDependentSymNode):
        known = _HINTS.get(line.partition(" ")[0], _HINT_VALUES)
        return CaptureError(f"{failed}: {_ON_VALUES}", who="capture", where=where, hint=known)
    return CaptureError(
        f"{failed}: {first_line(error)}",
        who="capture",
        where=where,
        hint="make this module free of control flow that depends on tensor values and of "
        "calls outside torch; or export it yourself and capture the ExportedProgram",
    )
