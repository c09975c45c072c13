"""The optimizer of a stage: which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from sparsefx import Pipeline
from sparsefx.recipe import Training
from sparsefx.testing import small_program
from sparsefx.train.step.optimization import make_optimizer, trained_parameters


def test_scores_of_masks_do_not_decay() -> None:
    text = "movement-prune{sparsity=0.5,roles=other}"
    program = Pipeline.parse(text).run(small_program(nn.Linear(4, 2), input=torch.ones(1, 4)))
    names = {id(parameter): name for name, parameter in program.module.named_parameters()}
    optimizer = make_optimizer(program, trained_parameters(program), Training(steps=1))
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {"weight": 0.01, "bias": 0.0, "weight_scores": 0.0}
