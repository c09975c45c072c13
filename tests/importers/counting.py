"""What the tests of importers count: zeros of a Program that trained, and what was not carried."""

from __future__ import annotations

import re

import torch

from sparsefx.importers.result import Imported
from sparsefx.masks import find_masks
from sparsefx.program import Program


def left(found: Imported) -> dict[str, str]:
    return {item.where: item.reason for item in found.left_out}


def trained(program: Program, steps: int) -> Program:
    """Take steps of an optimizer that moves every weight."""
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    for _ in range(steps):
        for parameter in program.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        program.step()
    return program


def zeros(program: Program, name: str) -> float:
    """Return the share of zeros of the weights with a name, masks multiplied in."""
    masks = {site.weight: program.tensor(site.mask) for site in find_masks(program)}
    found = [
        program.tensor(each) * masks.get(each, 1.0)
        for each in program.named_tensors()
        if re.search(name, each) and each not in {site.mask for site in find_masks(program)}
    ]
    assert found
    return sum(int((part == 0).sum()) for part in found) / sum(part.numel() for part in found)
