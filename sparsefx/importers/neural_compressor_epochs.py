"""Pruning configurations of Intel Neural Compressor 1.x, whose ramps count epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from sparsefx.importers.neural_compressor_stage import (
    Found,
    not_here,
    one_stage,
    read_training,
    weights_of,
)
from sparsefx.importers.result import (
    ALL_LINEARS,
    Imported,
    Notes,
    names_of,
    number_of,
    pass_text,
    share,
)
from sparsefx.recipe import Training

__all__ = ["import_epochs", "version_of"]

_WORDS_OF_1 = frozenset(
    {
        "start_epoch",
        "end_epoch",
        "initial_sparsity",
        "update_frequency",
        "prune_type",
        "names",
        "method",
    }
)
_WORDS_OF_2 = frozenset(
    {
        "start_step",
        "end_step",
        "pruning_frequency",
        "prune_frequency",
        "pruning_type",
        "pruning_scope",
        "prune_domain",
        "update_frequency_on_step",
        "pruning_op_types",
        "op_names",
        "excluded_op_names",
        "min_sparsity_ratio_per_op",
        "max_sparsity_ratio_per_op",
    }
)
_DEFAULTS: dict[str, Any] = {
    "initial_sparsity": 0.0,
    "target_sparsity": 0.97,
    "start_epoch": 0,
    "end_epoch": 4,
    "update_frequency": 1.0,
    "prune_type": "basic_magnitude",
}


def version_of(content: dict[str, Any], general: dict[str, Any]) -> Literal["1.x", "2.x", "either"]:
    """Return whose words a configuration uses: 1.x counts epochs, 2.x counts steps.

    Only the section ``weight_compression`` is in both.

    Args:
        content: The parsed file.
        general: The settings that all pruners share, with the list of pruners in it.

    >>> section = {"target_sparsity": 0.8, "pruners": [{"prune_type": "basic_magnitude"}]}
    >>> version_of({"pruning": {"approach": {"weight_compression": section}}}, section)
    '1.x'
    >>> version_of({"pruners": [{"target_sparsity": 0.8}]}, {"pruners": [{"target_sparsity": 0.8}]})
    '2.x'
    """
    words = set(general).union(*(set(each or {}) for each in general.get("pruners") or ()))
    pruning = content.get("pruning")
    if words & _WORDS_OF_2 or content.keys() & {"pruners", "pruning_configs"} or not pruning:
        return "2.x"
    if not isinstance(pruning["approach"].get("weight_compression"), dict):
        return "2.x"
    return "1.x" if words & _WORDS_OF_1 or "train" in pruning else "either"


def import_epochs(
    content: dict[str, Any],
    general: dict[str, Any],
    pruners: Sequence[dict[str, Any] | None],
    name: str,
    notes: Notes,
) -> Imported:
    """Turn a configuration into a recipe of one stage; each pruner becomes a pass.

    The ramp of 1.x is the cubic one, and masks are chosen once an epoch, one matrix at a time.

    Args:
        content: The parsed file.
        general: The settings that all pruners share.
        pruners: Those of each.
        name: Name of the recipe.
        notes: Where all is listed.

    Raises:
        RecipeError: Nothing of it can be carried over, or a value is wrong.
    """
    shared = {**_DEFAULTS, **_given(general)}
    merged = [{**shared, **_given(each or {})} for each in pruners]
    ends = [
        number_of(each["end_epoch"], f"pruners[{index}].end_epoch", low=0)
        for index, each in enumerate(merged)
    ]
    trained, optimizer = read_training(content, notes)
    epochs = max([*ends, trained, 1.0])
    found = [
        item
        for index, each in enumerate(merged)
        for item in _found(each, epochs, f"pruners[{index}]", notes)
    ]
    training = Training(epochs=epochs, optimizer=optimizer)
    return one_stage(name, "1.x", found, training, notes)


def _found(rest: dict[str, Any], epochs: float, where: str, notes: Notes) -> list[Found]:
    """Return the pass of a pruner, or nothing when its criterion is not here."""
    kind = rest.pop("prune_type")
    names = names_of(rest.pop("names", None), f"{where}.names")
    include = tuple(f"^{re.escape(each)}$" for each in names)
    weights: tuple[frozenset[str], ...] = ()
    if kind == "pattern_lock":
        text = pass_text("pattern-lock", include=include)
    elif kind in ("basic_magnitude", "magnitude"):
        if number_of(rest["start_epoch"], f"{where}.start_epoch", low=0) >= epochs:
            notes.leave(f"{where}.start_epoch", f"it is the end of the run of {epochs:g} epochs")
            return []
        text = _magnitude(rest, include, epochs, where)
        weights = weights_of(ALL_LINEARS, include)
    else:
        notes.leave(f"{where}.prune_type", not_here(kind))
        return []
    notes.leave_rest(where, {key: value for key, value in rest.items() if key not in _DEFAULTS})
    return [Found(f"{where} ({kind})", text, weights)]


def _magnitude(rest: dict[str, Any], include: tuple[str, ...], epochs: float, where: str) -> str:
    begin, end, every, first, last = (
        number_of(rest[key], f"{where}.{key}", low=0)
        for key in (
            "start_epoch",
            "end_epoch",
            "update_frequency",
            "initial_sparsity",
            "target_sparsity",
        )
    )
    return pass_text(
        "magnitude-prune",
        sparsity=last,
        initial_sparsity=first or None,
        begin=share(begin, epochs) or None,
        end=share(end, epochs) or None,
        frequency=share(every, epochs) if end > begin else None,
        roles=ALL_LINEARS,
        include=include,
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what is set; null stands for the default."""
    return {key: value for key, value in settings.items() if value is not None}
