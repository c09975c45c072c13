"""Whether an input says what is padding the way the models of transformers are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from sparsefx.graph.subgraph import subgraph
from sparsefx.passes.analyses.encoder import EncoderStructure

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["marks_tokens"]

_FAR = 100.0
"""A score that falls by so much counts no more; what is added to scores moves them by 1."""


def marks_tokens(program: Program, name: str) -> bool:
    """Return whether an input [batch, sequence] is 1 for tokens and 0 for padding.

    It is tried: with 0 for the last token, attention in layer 0 has to leave that token out. An
    input that is 1 for padding, as ``src_key_padding_mask`` of PyTorch is, or that is added to the
    scores, does something else. Where that cannot be tried, the answer is yes.
    """
    scores, size = _scores(program), program.signature.small()
    if scores is None or size is None:
        return True
    inputs = program.signature.example(program.signature.sizes(*size))
    batch = {each: tensor.to(program.device) for each, tensor in inputs.items()}
    run, read = subgraph(program.module, {"scores": scores})
    if name not in read:
        return True

    def last_key(mask: Tensor) -> Tensor:
        return run({**batch, name: mask})["scores"][..., -1]

    ones = torch.ones_like(batch[name])
    padded = ones.clone()
    padded[..., -1] = 0
    with program.evaluating(), torch.random.fork_rng(devices=[]):
        seen, hidden = last_key(ones), last_key(padded)
    if seen.dtype == torch.bool:
        return bool((seen & ~hidden).any())
    return bool((seen.float() - hidden.float() >= _FAR).any())


def _scores(program: Program) -> fx.Node | None:
    """Return what the mask is part of: the mask of fused attention, or the scores."""
    layers = program.facts(EncoderStructure).layers
    if not layers:
        return None
    core = layers[0].core
    return core.mask if core.sdpa is not None else core.scores
