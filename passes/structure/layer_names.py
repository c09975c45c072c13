"""The numbers of layers, in the names of tensors and in the configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsefx.passbase import Skip
from sparsefx.passes.analyses.encoder import EncoderLayer
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["layer_prefix", "only_in", "set_layer_count", "take_numbers"]

_NUMBER = re.compile(r"\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layers")
_KINDS = "layer_types"  # of ModernBERT: a list with a word for each layer


def layer_prefix(layer: EncoderLayer) -> str | None:
    """Return what the names of a layer's tensors begin with, e.g. ``bert.encoder.layer.3.``.

    None when its tensors are not named after its number, as where layers share them.
    """
    for found in _NUMBER.finditer(layer.q.weight):
        if int(found[1]) == layer.index:
            return layer.q.weight[: found.end()]
    return None


def only_in(program: Program, layer: EncoderLayer, other: EncoderLayer) -> list[str]:
    """Return the weights that one layer has and another has not, by their names within it."""
    names = list(program.named_tensors())
    ours, theirs = (
        [name.removeprefix(prefix) for name in names if name.startswith(prefix)] if prefix else []
        for prefix in (layer_prefix(layer), layer_prefix(other))
    )
    return sorted(name for name in {*ours} - {*theirs} if theirs and name.endswith(".weight"))


def take_numbers(
    rewriter: Rewriter, layers: Sequence[EncoderLayer], kept: Sequence[int]
) -> tuple[Skip, ...]:
    """Name the tensors of the kept layers 0, 1, 2, ... in their order.

    Args:
        rewriter: Of the pass that dropped the others.
        layers: All layers, as they were before.
        kept: Indices of those that are left, ascending.

    Returns:
        A skip for each layer whose tensors do not bear its number.
    """
    skipped = []
    for new, old in enumerate(kept):
        prefix = layer_prefix(layers[old])
        if prefix is None:
            skipped.append(Skip(f"layer {old}", "the names of its tensors have no number"))
            continue
        wanted = f"{prefix[: -len(f'{old}.')]}{new}."
        if wanted == prefix:
            continue
        for name in [n for n in rewriter.program.named_tensors() if n.startswith(prefix)]:
            rewriter.rename_tensor(name, wanted + name.removeprefix(prefix))
    return tuple(skipped)


def set_layer_count(program: Program, kept: Sequence[int]) -> None:
    """Write the number of layers into the configuration, and of what kind each of them is.

    Args:
        program: Has the layers that are left.
        kept: What their indices were, ascending.
    """
    for key in _COUNTS:
        if key in program.config:
            program.config[key] = len(kept)
    for key, kinds in program.config.items():
        if key.endswith(_KINDS) and isinstance(kinds, list) and max(kept, default=0) < len(kinds):
            program.config[key] = [kinds[index] for index in kept]
