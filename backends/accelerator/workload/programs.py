"""Workloads of Programs as they come: fused attention, float weights, masks not folded."""

from __future__ import annotations

import torch

from sparsefx.backends.accelerator.workload.legalise import legalise
from sparsefx.backends.accelerator.workload.lowering import Lowering, lower_program
from sparsefx.backends.accelerator.workload.operations import Workload
from sparsefx.instruments.timing import random_batch
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.properties import Property

__all__ = ["is_float", "workload_of"]

_CALIBRATION_TOKENS = 32


def is_float(program: Program) -> bool:
    """Whether a Program has to be quantized before an int8 machine can time it."""
    return Property.QUANTIZED not in program.properties


def workload_of(program: Program, *, integers: bool, batch: int, tokens: int) -> Workload:
    """The workload of a Program, with its real non-zeros.

    For an int8 machine a float Program is quantized here, attention included. The ranges come from
    random tokens, which is enough for the timing: only zero or not matters for it.

    Args:
        program: Stays as it is.
        integers: Whether the machine computes in int8.
        batch: Sequences at once.
        tokens: Tokens of a sequence.

    Raises:
        ProgramError: When it takes other sizes alone.
        TargetError: When something stays float that an int8 machine needs as integers.
    """
    program.signature.check_taken(batch, tokens)
    program = program.copy().eval()
    if integers and is_float(program):
        program = _quantized(program, min(tokens, _CALIBRATION_TOKENS))
    ready = legalise(integers).run(program)
    sizes = program.signature.sizes(batch, tokens)
    return lower_program(ready, Lowering(sizes, integers, {}))


def _quantized(program: Program, tokens: int) -> Program:
    fold = "fold-masks," if Property.MASKED in program.properties else ""
    program = Pipeline.parse(f"{fold}quantize-prepare{{requantize='all'}}").run(program)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that one model gives one Program, and one fingerprint
        batch = random_batch(program, 1, tokens)
    calibrate(program, [batch])
    return Pipeline.parse("quantize-convert").run(program)
