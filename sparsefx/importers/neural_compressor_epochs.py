"""Pruning configurations of Intel Neural Compressor 1.x, whose ramps count epochs."""

from __future__ import annotations

import re
from typing import Any, Literal

from sparsefx.errors import RecipeError
from sparsefx.importers.neural_compressor_pruner import Found, kept, weights_of
from sparsefx.importers.result import (
    Imported,
    Notes,
    names_of,
    number_of,
    pass_text,
    share,
)
from sparsefx.recipe import OptimizerSettings, Recipe, Stage, Training

__all__ = ["epochs_of", "import_epochs", "leave_training", "optimizer_of", "version_of"]

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
_ALL_LINEARS = ("encoder", "pooler", "head", "other")
_UNLIKE = {
    "gradient_sensitivity": "score-heads with prune-heads, which take heads by their gradients",
    "group_lasso": "reweighted-l1, a penalty on single weights",
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


def import_epochs(content: dict[str, Any], general: dict[str, Any], name: str) -> Imported:
    """Turn a configuration into a recipe of one stage; each pruner becomes a pass.

    The ramp of 1.x is the cubic one, and masks are chosen once an epoch, one matrix at a time.

    Args:
        content: The parsed file.
        general: Its section ``weight_compression``.
        name: Name of the recipe.

    Raises:
        RecipeError: Nothing of it can be carried over, or a value is wrong.
    """
    shared = {**_DEFAULTS, **_given(general)}
    shared.pop("pruners", None)
    merged = [{**shared, **_given(each or {})} for each in general.get("pruners") or [{}]]
    train = dict((content.get("pruning") or {}).get("train") or {})
    notes = Notes()
    ends = [_number(each, "end_epoch", f"pruners[{i}]") for i, each in enumerate(merged)]
    epochs = max([*ends, *epochs_of(train), 1.0])
    found = [
        item
        for index, each in enumerate(merged)
        for item in _found(dict(each), epochs, f"pruners[{index}]", notes)
    ]
    texts = kept(found, notes)
    if not texts:
        reasons = "; ".join(str(item) for item in notes.left_out)
        raise RecipeError(f"no pruner can be carried over: {reasons}", where="pruners")
    settings = optimizer_of(train, notes)
    train.pop("start_epoch", None)
    leave_training(train, "train", notes)
    for key in sorted(content.keys() - {"pruning"}):
        notes.leave(key, "only the section 'pruning' is carried over")
    stage = Stage(
        name="sparse",
        pipeline=texts,
        training=Training(epochs=epochs, optimizer=settings),
        after=("fold-masks",),
    )
    source = "A pruning configuration of Intel Neural Compressor 1.x."
    return notes.result(Recipe(name=name, source=source, stages=(stage,)))


def _found(rest: dict[str, Any], epochs: float, where: str, notes: Notes) -> list[Found]:
    """Return the pass of a pruner, or nothing when its criterion is not here."""
    kind = rest.pop("prune_type")
    names = names_of(rest.pop("names", None), f"{where}.names")
    include = tuple(f"^{re.escape(each)}$" for each in names)
    weights: tuple[frozenset[str], ...] = ()
    if kind == "pattern_lock":
        text = pass_text("pattern-lock", include=include)
    elif kind in ("basic_magnitude", "magnitude"):
        if _number(rest, "start_epoch", where) >= epochs:
            notes.leave(f"{where}.start_epoch", f"it is the end of the run of {epochs:g} epochs")
            return []
        text = _magnitude(rest, include, epochs, where)
        weights = weights_of(_ALL_LINEARS, include)
    else:
        nearest = _UNLIKE.get(str(kind), "magnitude-prune")
        notes.leave(f"{where}.prune_type", f"{kind!r} is not here; nearest is {nearest}")
        return []
    notes.leave_rest(where, {key: value for key, value in rest.items() if key not in _DEFAULTS})
    return [Found(f"{where} ({kind})", text, weights)]


def _magnitude(rest: dict[str, Any], include: tuple[str, ...], epochs: float, where: str) -> str:
    begin, end, every, first, last = (
        _number(rest, key, where)
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
        roles=_ALL_LINEARS,
        include=include,
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what is set; null stands for the default."""
    return {key: value for key, value in settings.items() if value is not None}


def _number(settings: dict[str, Any], key: str, where: str) -> float:
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise RecipeError(
            f"expected a number of 0 or more, found {value!r}", where=f"{where}.{key}"
        )
    return float(value)


def epochs_of(train: dict[str, Any]) -> list[float]:
    """Take the numbers of epochs out of a section; null stands for the default."""
    given = {key: train.pop(key, None) for key in ("epoch", "end_epoch")}
    return [
        number_of(each, f"pruning.train.{key}", low=0)
        for key, each in given.items()
        if each is not None
    ]


def leave_training(train: dict[str, Any], where: str, notes: Notes) -> None:
    """List what is left of a section on training; its distillation has a counterpart."""
    criteria = train.get("criterion")
    for kind, given in (train.pop("criterion") if isinstance(criteria, dict) else {}).items():
        why = "has no counterpart"
        if "Distillation" in str(kind):
            why = (
                "distill{logits=...,temperature=...} with label_weight and a teacher is nearest; "
                "its teacher is not in the file: add it by hand"
            )
        notes.leave(f"{where}.criterion.{kind}", f"{given!r}: {why}")
    notes.leave_rest(where, train)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise RecipeError(f"expected keys with values, found {value!r}", where=where)


def optimizer_of(train: dict[str, Any], notes: Notes) -> OptimizerSettings:
    """Take the optimizer out of a section, whatever its name; here it is AdamW."""
    found: dict[str, float] = {}
    optimizers = train.pop("optimizer", None) or {}
    for kind, given in _mapping(optimizers, "train.optimizer").items():
        where = f"train.optimizer.{kind}"
        rest = dict(_mapping(given or {}, where))
        if "learning_rate" in found:
            notes.leave(where, "a stage has one optimizer; the first is taken")
            continue
        for key in ("learning_rate", *(["weight_decay"] if kind == "AdamW" else [])):
            if rest.get(key) is not None:
                found[key] = number_of(rest.pop(key), f"{where}.{key}", low=0)
                notes.carry(f"{where}.{key}", f"AdamW with {found[key]:g}")
        notes.leave_rest(where, rest)
    if found.get("learning_rate") == 0:
        raise RecipeError("a learning rate of 0 trains nothing", where="train.optimizer")
    return OptimizerSettings.model_validate(found)
