"""torch.export of a model, with errors that name the module and a way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsefx.errors import CaptureError, first_line
from sparsefx.frontend.agreement import in_mode

__all__ = ["export"]

_EXPORTED: Final = (
    *(Tensor, torch.SymInt, torch.SymFloat, torch.SymBool),
    *(int, float, complex, str, type(None)),
)


def export(
    model: nn.Module, inputs: dict[str, Tensor], dims: Mapping[str, Mapping[int, str]]
) -> ExportedProgram:
    """Export a model in training mode, in which every dropout shows its rate.

    Args:
        model: It is left as it is.
        inputs: The example inputs.
        dims: The names of the dynamic dimensions of each.

    Raises:
        CaptureError: It cannot be exported; names the module.
    """
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(found, auto) for name, found in dims.items()}
    with in_mode(model, training=True), _watched(model) as trace:
        try:
            return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise _export_error(error, model, trace) from error


@dataclass
class _Trace:
    """The modules whose forward has not returned, and what that of the model returned."""

    entered: list[str] = field(default_factory=list)
    returned: Any = None


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Trace]:
    trace = _Trace()
    handles = []
    for name, module in model.named_modules():
        label = f"{name or '<root>'} ({type(module).__name__})"
        handles.append(
            module.register_forward_pre_hook(lambda *_, label=label: trace.entered.append(label))
        )
        handles.append(module.register_forward_hook(lambda *_: trace.entered.pop() and None))
    handles.append(model.register_forward_hook(lambda *call: setattr(trace, "returned", call[-1])))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _export_error(error: Exception, model: nn.Module, trace: _Trace) -> CaptureError:
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
    return CaptureError(
        f"torch.export failed: {first_line(error)}",
        who="capture",
        where=trace.entered[-1] if trace.entered else where,
        hint="make this module free of control flow that depends on tensor values and of "
        "calls outside torch; or export it yourself and capture the ExportedProgram",
    )
