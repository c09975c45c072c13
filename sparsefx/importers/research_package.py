"""JSON configurations of the Model-Compression-Research-Package, the code of Prune Once for All."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.result import ALL_LINEARS, Imported, Notes, names_of, number_of, pass_text
from sparsefx.recipe import Recipe, Stage, Training

__all__ = ["import_research_package", "is_research_package"]

_PRUNING_KEY = "pruning_fn"
_QUANTIZATION_KEYS = frozenset(
    {"quantization_begin", "not_to_quantize", "not_to_requantize_output"}
)
_FREE_EPOCHS = 3
_SCRIPT = (
    "learning rate, distillation, teacher and data are arguments of the training script, not of "
    "this file; the stage has sparsefx's defaults"
)


def is_research_package(content: object) -> bool:
    """Return whether parsed JSON is a pruning, lock or quantization configuration."""
    if not isinstance(content, dict):
        return False
    return _PRUNING_KEY in content or bool(_QUANTIZATION_KEYS & content.keys())


def import_research_package(content: dict[str, Any], *, name: str) -> Imported:
    """Turn one configuration into a recipe of one stage.

    Args:
        content: The parsed JSON.
        name: Name of the recipe.

    Raises:
        RecipeError: A value is missing or wrong, or the pruning method is none of those here.
    """
    rest, notes = dict(content), Notes()
    if _PRUNING_KEY not in rest:
        stage = _quantization(rest, notes)
    else:
        method = rest.pop(_PRUNING_KEY)
        if not isinstance(method, str) or method not in _METHODS:
            raise RecipeError(
                f"the pruning method {method!r} cannot be carried over",
                where=_PRUNING_KEY,
                hint=f"methods that can: {', '.join(_METHODS)}",
            )
        stage = _METHODS[method](rest, notes)
    notes.leave("the run", _SCRIPT)
    notes.leave_rest(name, rest)
    source = "A configuration of IntelLabs' Model-Compression-Research-Package (Prune OFA)."
    return notes.result(Recipe(name=name, source=source, stages=(stage,)))


def _magnitude(rest: dict[str, Any], notes: Notes) -> Stage:
    where = "pruning_fn_default_kwargs"
    given = rest.pop(where, None) or {}
    if not isinstance(given, dict):
        raise RecipeError(f"expected keys with values, found {given!r}", where=where)
    given = dict(given)
    sparsity = number_of(given.pop("target_sparsity", None), f"{where}.target_sparsity")
    initial = given.pop("initial_sparsity", 0.0)
    notes.leave_rest(where, given)
    begin, end, every, last = _schedule(rest, notes)
    text = pass_text(
        "magnitude-prune",
        sparsity=sparsity,
        initial_sparsity=initial or None,
        begin=begin or None,
        end=end or None,
        frequency=every if end else None,
        update_end=last if last > end else None,
        mask="soft",
        ties="drop",
        roles=ALL_LINEARS,
        exclude=_names(rest, notes),
    )
    notes.carry("unstructured_magnitude", text)
    strategy = rest.pop("init_strategy", "uniform")
    if strategy != "uniform":
        notes.leave("init_strategy", f"{strategy!r}: every matrix gets the same sparsity here")
    training = Training(steps=last) if last else Training(epochs=_FREE_EPOCHS)
    notes.leave(
        "number of steps",
        f"not in the file; {last} is where pruning ends: add steps for the recovery after it"
        if last
        else f"not in the file; {_FREE_EPOCHS} epochs are set",
    )
    return Stage(name="sparse", pipeline=(text,), training=training, after=("fold-masks",))


def _schedule(rest: dict[str, Any], notes: Notes) -> tuple[int, int, int, int]:
    """Return begin, end of the ramp, frequency, and the last choice of masks, in steps."""
    scheduler = rest.pop("scheduler", "one_shot")
    begin, end = rest.pop("policy_begin_step", 0), rest.pop("policy_end_step", 0)
    first, last = rest.pop("begin_pruning_step", begin), rest.pop("end_pruning_step", end)
    every = rest.pop("pruning_frequency", 1)
    if scheduler == "one_shot":
        return 0, 0, 1, 0
    if scheduler != "iterative":
        notes.leave("scheduler", f"{scheduler!r} is not known; the cubic ramp is used")
    if first != begin:
        notes.leave("begin_pruning_step", f"{first}: masks move from policy_begin_step={begin} on")
    return begin, end, every, max(last, end)


def _lock(rest: dict[str, Any], notes: Notes) -> Stage:
    rest.pop("scheduler", None)
    text = pass_text("pattern-lock", exclude=_names(rest, notes))
    notes.carry("pattern_lock", text)
    notes.leave("number of steps", f"not in the file; {_FREE_EPOCHS} epochs are set")
    training = Training(epochs=_FREE_EPOCHS)
    return Stage(name="locked", pipeline=(text,), training=training, after=("fold-masks",))


def _quantization(rest: dict[str, Any], notes: Notes) -> Stage:
    kept = _without_teacher(rest.pop("not_to_quantize", None), notes, "not_to_quantize")
    plain = _expressions(rest.pop("not_to_requantize_output", None), "not_to_requantize_output")
    text = pass_text(
        "quantize-prepare",
        begin=rest.pop("quantization_begin", 0) or None,
        requantize=f"^(?!.*(?:{'|'.join(plain)}))" if plain else "all",
        exclude=kept,
    )
    notes.carry("quantization", text)
    notes.leave("number of steps", f"not in the file; {_FREE_EPOCHS} epochs are set")
    return Stage(
        name="int8",
        pipeline=(text,),
        training=Training(epochs=_FREE_EPOCHS, precision="fp32"),
        after=("quantize-convert",),
    )


def _names(rest: dict[str, Any], notes: Notes) -> tuple[str, ...]:
    layers = rest.pop("prune_layer_types", {"Linear": {"name": "weight"}})
    for kind in sorted(set(layers) - {"Linear", "QuantizedLinear"}):
        notes.leave(f"prune_layer_types.{kind}", "only linears are pruned by this recipe")
    if chosen := rest.pop("explicit_prune", None):
        notes.leave("explicit_prune", f"{chosen!r}: settings of single layers are not carried over")
    return _without_teacher(rest.pop("not_to_prune", None), notes, "not_to_prune")


def _without_teacher(given: Any, notes: Notes, where: str) -> tuple[str, ...]:
    """Drop ``teacher``: passes never touch a teacher."""
    patterns = _expressions(given, where)
    kept = tuple(pattern for pattern in patterns if pattern != "teacher")
    if len(kept) != len(patterns):
        notes.carry(f"{where}: teacher", "always so")
    return kept


def _expressions(given: Any, where: str) -> tuple[str, ...]:
    patterns = names_of(given, where)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(
                f"{pattern!r} is not a regular expression: {error}", where=where
            ) from error
    return patterns


_METHODS: dict[str, Callable[[dict[str, Any], Notes], Stage]] = {
    "unstructured_magnitude": _magnitude,
    "pattern_lock": _lock,
}
