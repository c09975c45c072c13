"""Calibration: observers see data without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.errors import PassError
from sparsefx.inputs.failures import explained
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["calibrate"]


def calibrate(program: Program, batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Let the observers of a prepared Program see ``batches``; nothing else changes.

    Dropout is off, and each observer keeps the smallest and largest value of all batches and of
    what it saw before (post-training quantization; in training they average instead). While it
    calibrates, values flow through the graph without fake quantization, so that no range depends
    on a half-known range before it.

    Args:
        program: After quantize-prepare.
        batches: Inputs by name; some hundred sentences are usual.

    Returns:
        The number of batches.

    Raises:
        PassError: When there is no observer, or no batch.
        ProgramError: A batch does not fit the Program, or has an id outside a table.
    """
    if Property.QUANT_PREPARED not in program.properties:
        raise PassError(
            "the Program has no observers", who="calibrate", hint="run 'quantize-prepare' before it"
        )
    count = 0
    calibrator = _Calibrator(program.module)
    with program.evaluating():
        for batch in batches:
            program.signature.check(batch)
            with explained(program, batch):
                calibrator.run(*(batch[name] for name in program.signature.input_names))
            count += 1
    if count == 0:
        raise PassError("there is no batch to calibrate with", who="calibrate")
    return count


class _Calibrator(fx.Interpreter):
    """Runs the graph with observers that always see, and quantizers that never act."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.sparsefx.observe.default:
            x, minimum, maximum, step = args[:4]
            return target(x, minimum, maximum, step, 0.0, 0, None, True)
        if target is torch.ops.sparsefx.fake_quantize.default:
            return args[0]
        return super().call_function(target, args, kwargs)
