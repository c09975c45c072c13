"""Quantized tiny Programs, each made once in a test session."""

from __future__ import annotations

from functools import cache

import torch

from sparsefx import Pipeline, Program
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.passes.quantize.sites import find_linears
from tests.programs import shared
from tests.tiny_models import example_batch


@cache
def sparse(model: str, zeros: float) -> Program:
    """Return a tiny model with this share of zeros in its linears; only to look at."""
    program = shared(model).copy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in find_linears(program)[0]:
            weight = program.tensor(site.weight)
            # Larger weights than a fresh model's, so that the layers have something to say.
            weight.mul_(5.0 * (torch.rand(weight.shape, generator=generator) >= zeros))
    return program


@cache
def int8(model: str = "bert-cls", options: str = "", zeros: float = 0.9) -> Program:
    """Return a quantized tiny model; only to look at."""
    program = Pipeline.parse(f"quantize-prepare{options}").run(sparse(model, zeros))
    calibrate(program, [example_batch(4, length, seed=length) for length in (5, 8, 13)])
    return Pipeline.parse("quantize-convert").run(program)
