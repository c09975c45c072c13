"""An int8 encoder on simulated accelerators, made once."""

from __future__ import annotations

import functools

import torch

from sparsefx import Pipeline, Program
from sparsefx.backends.accelerator.target import Accelerator, CompiledForAccelerator
from sparsefx.passes.quantize.calibrate import calibrate
from tests.programs import captured
from tests.tiny_models import example_batch


@functools.cache
def quantized() -> Program:
    program = captured("bert-cls")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in program.named_tensors().items():
            if tensor.dim() == 2 and "encoder" in name:
                tensor.mul_(torch.rand(tensor.shape, generator=generator) > 0.8)
    program = Pipeline.parse("quantize-prepare").run(program)
    calibrate(program, [example_batch(4, length, seed=length) for length in (5, 9, 16)])
    return Pipeline.parse("quantize-convert").run(program)


@functools.cache
def compiled(arch: str = "lock-step-32") -> CompiledForAccelerator:
    target = Accelerator(arch=arch, batch=2, sequence=16)
    return target.lower(target.pipeline().run(quantized()))
