"""Whether a model of transformers computes what a Program computes, which weights alone don't say.

A pass may change more than weights: another activation has a place in a configuration, or none.
Both are run on one batch of random tokens. What quantizes activations, and what is drawn in
training, has no place in a folder of transformers and is left out of the Program too.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.errors import UnrepresentableError
from sparsefx.huggingface.sentence_folder import sentence_vectors
from sparsefx.instruments.timing import random_batch
from sparsefx.program import Program

__all__ = ["check_agreement"]

logger = logging.getLogger(__name__)

_WHO = "save_pretrained"
_ROUNDINGS = 8
"""How many roundings of its type, of the largest value, an output may differ by, and besides:"""
_SHARE = 1e-4
"""The share that sums in another order may change; measured were less than 2e-6."""

_QUANTIZERS = frozenset(
    f"sparsefx.{name}.default" for name in ("quantize", "fake_quantize", "fake_quantize_weight")
)


def check_agreement(
    program: Program, build: Callable[[], nn.Module], weights: Mapping[str, Tensor]
) -> None:
    """Refuse a Program that a model of its configuration with its weights does not equal.

    Args:
        program: Captured from a model of transformers.
        build: Makes a model of its configuration.
        weights: What the model is given, by name.

    Raises:
        UnrepresentableError: Names the output that differs, and by how much.
    """
    batch = _batch(program)
    if batch is None:
        logger.warning("%s: no small batch meets the conditions on sizes; not compared", _WHO)
        return
    expected = _of_transformers(program, build, weights, batch)
    with program.evaluating():
        found = _WithoutQuantizers(program.module).run(
            *(batch[name] for name in program.signature.input_names)
        )
    shared = [n for n in found if n in expected and found[n].shape == expected[n].shape]
    if not shared:
        logger.warning("%s: no output is one of transformers; not compared", _WHO)
    for name in shared:
        _compare(name, found[name], expected[name])


def _batch(program: Program) -> dict[str, Tensor] | None:
    size = program.signature.small()
    if size is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random_batch(program, *size)


def _of_transformers(
    program: Program,
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):  # what it draws for weights is not the caller's
        model = build().eval()
    model.load_state_dict(weights, strict=False)
    taken = inspect.signature(model.forward).parameters.keys() & batch.keys()
    with torch.no_grad():
        found: Any = model(**{name: batch[name] for name in taken})
    outputs = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return {**outputs, **sentence_vectors(program, outputs)}


def _compare(name: str, found: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max())
    least = max(torch.finfo(each.dtype).eps for each in (found, expected))
    differs = float((found.float() - expected.float()).abs().max())
    if differs <= (_ROUNDINGS * least + _SHARE) * largest + torch.finfo(torch.float32).eps:
        return
    raise UnrepresentableError(
        "a model of this configuration computes something else: values of up to "
        f"{largest:.3g} differ by up to {differs:.3g}",
        who=_WHO,
        where=name,
        hint="a pass has changed more than weights; where the configuration has a word for that, "
        "such as hidden_act, the pass sets it in program.config; program.save writes any Program",
    )


class _WithoutQuantizers(fx.Interpreter):
    """Runs a graph in which activations keep their values, and no token is hidden."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target)
        if name in _QUANTIZERS:
            return args[0]
        if name == "sparsefx.dequantize.default" and args[0].is_floating_point():
            return args[0]
        if name == "sparsefx.draw_masked.default":
            return torch.full_like(args[0], -1)
        return super().call_function(target, args, kwargs)
