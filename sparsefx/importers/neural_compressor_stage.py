"""What both versions of Intel Neural Compressor end in: one stage, of its pruners and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sparsefx.errors import RecipeError
from sparsefx.importers.overlaps import SAME_WEIGHTS
from sparsefx.importers.result import Imported, Notes, number_of
from sparsefx.recipe import OptimizerSettings, Recipe, Stage, Training

__all__ = ["Found", "not_here", "one_stage", "read_training", "weights_of"]

_TRAIN = "pruning.train"
_BY_GRADIENTS = (
    "movement-prune is nearest, which weighs by weight times gradient too, summed over training "
    "with its sign; for what training leaves alone, write magnitude into the file"
)
_NEAREST = {
    "snip": _BY_GRADIENTS,
    "snip_progressive": _BY_GRADIENTS,
    "snip_momentum": _BY_GRADIENTS,
    "snip_momentum_progressive": _BY_GRADIENTS,
    "gradient_sensitivity": "prune-heads with score-heads is nearest: heads by their gradients",
    "block_mask": "prune-neurons and prune-heads are nearest, which take whole rows and columns",
    "retrain_free": "obert-prune is nearest, which too weighs by gradients of some batches",
    "group_lasso": "reweighted-l1 is nearest, a penalty on single weights",
}


class Found(NamedTuple):
    """The pass of a pruner."""

    place: str
    """Where the pruner stands in the file, and its criterion."""
    text: str
    weights: tuple[frozenset[str], ...] = ()
    """Which it prunes: roles, include and exclude; empty for a lock, which takes all masks."""


def weights_of(*selection: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Return what is equal for two selections of the same weights: the order of names is none."""
    return tuple(map(frozenset, selection))


def not_here(kind: object) -> str:
    """Say that sparsefx does not have a criterion, and what comes nearest to it."""
    nearest = _NEAREST.get(str(kind), "magnitude and pattern_lock are carried over")
    return f"the criterion {kind!r} is not here; {nearest}"


def one_stage(
    name: str, release: str, found: Sequence[Found], training: Training, notes: Notes
) -> Imported:
    """Return a recipe of one stage, which holds the passes of all pruners.

    Raises:
        RecipeError: There is none, or the recipe is wrong.
    """
    stage = Stage(
        name="sparse", pipeline=_kept(found, notes), training=training, after=("fold-masks",)
    )
    source = f"A pruning configuration of Intel Neural Compressor {release}."
    return notes.result(Recipe(name=name, source=source, stages=(stage,)))


def _kept(found: Sequence[Found], notes: Notes) -> tuple[str, ...]:
    """Return the passes of pruners, without locks that would end a ramp; list all."""
    ramps = any(each.weights for each in found)
    why = (
        "a lock beside a pruner with a ramp would end it; import it as a stage of its own"
        if ramps
        else "only the first of several locks is taken, since one takes all masks"
    )
    taken: list[Found] = []
    for each in found:
        if not each.weights and (ramps or taken):
            notes.leave(each.place, why)
        elif each.weights in [other.weights for other in taken]:
            notes.leave(each.place, SAME_WEIGHTS)
        else:
            taken.append(each)
    if not taken:
        of_pruners = (item for item in notes.left_out if item.where.startswith("pruners["))
        reasons = "; ".join(map(str, of_pruners))
        raise RecipeError(f"no pruner can be carried over: {reasons}", where="pruners")
    for each in taken:
        notes.carry(each.place, each.text)
    return tuple(each.text for each in taken)


def read_training(content: dict[str, Any], notes: Notes) -> tuple[float, OptimizerSettings]:
    """Return the epochs of the section on training, 0 where it has none, and its optimizer."""
    pruning = content.get("pruning") or {}
    train = dict(pruning.get("train") or {})
    epochs = max(_epochs_of(train), default=0.0)
    optimizer = _optimizer_of(train, notes)
    if not train.get("start_epoch"):  # at 0 a stage starts anyway
        train.pop("start_epoch", None)
    _leave_training(train, notes)
    for key in sorted(pruning.keys() - {"approach", "train"}):
        notes.leave(f"pruning.{key}", "only its sections 'approach' and 'train' are carried over")
    return epochs, optimizer


def _epochs_of(train: dict[str, Any]) -> list[float]:
    """Take the numbers of epochs out of a section; null stands for the default."""
    given = {key: train.pop(key, None) for key in ("epoch", "end_epoch")}
    return [
        number_of(each, f"{_TRAIN}.{key}", low=0) for key, each in given.items() if each is not None
    ]


def _leave_training(train: dict[str, Any], notes: Notes) -> None:
    """List what is left of a section on training; its distillation has a counterpart."""
    criteria = train.get("criterion")
    for kind, given in (train.pop("criterion") if isinstance(criteria, dict) else {}).items():
        why = "has no counterpart"
        if "Distillation" in str(kind):
            why = (
                "distill{logits=...,temperature=...} with label_weight and a teacher is nearest; "
                "its teacher is not in the file: add it by hand"
            )
        notes.leave(f"{_TRAIN}.criterion.{kind}", f"{given!r}: {why}")
    notes.leave_rest(_TRAIN, train)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise RecipeError(f"expected keys with values, found {value!r}", where=where)


def _optimizer_of(train: dict[str, Any], notes: Notes) -> OptimizerSettings:
    """Take the optimizer out of a section, whatever its name; here it is AdamW."""
    found: dict[str, float] = {}
    optimizers = train.pop("optimizer", None) or {}
    for kind, given in _mapping(optimizers, f"{_TRAIN}.optimizer").items():
        where = f"{_TRAIN}.optimizer.{kind}"
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
        raise RecipeError("a learning rate of 0 trains nothing", where=f"{_TRAIN}.optimizer")
    return OptimizerSettings.model_validate(found)
