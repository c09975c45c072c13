"""What each modifier of SparseML is in sparsefx: a pass, or a setting of the training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.result import ALL_LINEARS, Notes, names_of, number_of, pass_text, share
from sparsefx.importers.sparseml_file import Modifier
from sparsefx.importers.sparseml_names import EVERY, expressions, named, some_names
from sparsefx.importers.sparseml_training import WITHOUT_EFFECT

__all__ = [
    "begins",
    "has_pattern",
    "lock",
    "pruning",
    "quantization",
    "quantizes_tables",
    "reason_for",
]

_EVERY_MATRIX = ("encoder", "pooler", "head", "embedding", "other")
_EXPONENTS = {"cubic": 3.0, "linear": 1.0, "inverse_cubic": 1 / 3}
_PASSES = {"OBSPruningModifier": "obert-prune", "MovementPruningModifier": "movement-prune"}
_OBS = {
    "num_grads": ("gradients", int),
    "fisher_block_size": ("block", int),
    "damp": ("damp", float),
}
_FLOAT_ANYWAY = {"LayerNorm", "Tanh", "Softmax", "GELU", "GELUActivation", "Dropout", "Embedding"}
_EMBEDDINGS = "embeddings"
_SINGLE = ("unstructured", "0:0")
_FOURS = ("block", "block4")
_WHOLE = ("filter", "channel")
_GROUPS = re.compile(r"(\d+):(\d+)")
_QUANTIZATION_DEFAULTS: dict[str, Any] = {
    "activation_bits": 8,
    "activation_qconfig_kwargs": None,
    "custom_quantizable_module_types": None,
    "exclude_batchnorm": True,
    "model_fuse_fn_kwargs": None,
    "model_fuse_fn_name": None,
    "num_calibration_steps": None,
    "quantize_conv_activations": True,
    "reduce_range": False,
    "tensorrt": False,
    "weight_bits": 8,
    "weight_qconfig_kwargs": None,
}
_HEADS = "prune-heads and prune-neurons take whole rows and columns out, at once"
_REASONS = {
    "LayerPruningModifier": (
        "it names the layers that go, drop-layers{keep=(...)} those that stay: add it by hand"
    ),
    "LayerThinningModifier": f"{_HEADS}; nothing is left to thin",
    "StructuredPruningModifier": _HEADS,
    "MFACPruningModifier": (
        "its criterion, second derivatives by another estimate, is not here; obert-prune with the "
        "same ramp is the nearest"
    ),
    "OutputDistillationModifier": "it compares hidden states; distill{hidden=...} is nearest",
    "PerLayerDistillationModifier": "it compares hidden states; distill{hidden=...} is nearest",
}


def reason_for(kind: str) -> str:
    """Return why a modifier that is not carried over is not."""
    if kind in _REASONS:
        return _REASONS[kind]
    if "Pruning" in kind:
        return "its criterion is not here; magnitude-prune with the same ramp is the nearest"
    return "it has no counterpart"


def has_pattern(item: Modifier, notes: Notes) -> bool:
    """Return whether the masks of a modifier that prunes have a pattern; list them if not."""
    mask = item.settings.get("mask_type", "unstructured")
    if not _is_mask(mask):
        why = "whole channels are no mask here" if mask in _WHOLE else "it is not known"
        notes.leave(item.kind, f"mask_type {mask!r}: {why}; {_HEADS}")
        return False
    return True


def pruning(
    item: Modifier, length: float, notes: Notes, exclude: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return a pruning pass for each final sparsity of a modifier that prunes along a ramp.

    Args:
        item: The modifier; its masks have a pattern.
        length: Epochs of its stage.
        notes: Where all is listed.
        exclude: Expressions of weights that it leaves to other modifiers.
    """
    rest = dict(item.settings)
    mask = rest.pop("mask_type", "unstructured")
    kind = _PASSES.get(item.kind, "magnitude-prune")
    more = _second_order(rest, notes) if kind == "obert-prune" else {}
    ramp = _ramp(item.kind, rest, length, notes)
    if rest.pop("leave_enabled", True) is False:
        notes.leave(f"{item.kind}.leave_enabled", "masks hold until they are folded")
    every = number_of(rest.pop("update_frequency", -1.0), f"{item.kind}.update_frequency")
    initial = rest.pop("init_sparsity", 0.0)
    if not isinstance(initial, int | float):
        notes.leave(f"{item.kind}.init_sparsity", f"{initial}: the ramp starts at 0")
        initial = 0.0
    everywhere = rest.pop("global_sparsity", item.kind.startswith("Global"))
    if everywhere and kind == "movement-prune":
        notes.leave(f"{item.kind}.global_sparsity", "scores are compared within each weight")
        everywhere = False
    for key in ("end_comparator", "log_types"):
        rest.pop(key, None)
    criterion = rest.pop("score_type", "magnitude")
    if criterion != "magnitude":
        notes.leave(f"{item.kind}.score_type", f"{criterion!r} is not here; magnitude is used")
    texts = []
    for sparsity, names in _targets(rest, item.kind, notes):
        text = pass_text(
            kind,
            sparsity=sparsity,
            initial_sparsity=float(initial) or None,
            **ramp,
            frequency=(share(every, length) or None) if every > 0 else None,
            scope="global" if everywhere else None,
            pattern=_pattern(mask, sparsity),
            **more,
            **_selection(names, item.kind, notes),
            exclude=exclude,
        )
        notes.carry(item.kind, text)
        texts.append(text)
    notes.leave_rest(item.kind, rest)
    return tuple(texts)


def _ramp(kind: str, rest: dict[str, Any], length: float, notes: Notes) -> dict[str, Any]:
    """Take the settings of a ramp out of ``rest``; return the options that they become."""
    begin, end = max(0.0, rest.pop("start_epoch", 0.0)), rest.pop("end_epoch", length)
    end = length if end < 0 else end
    if end > length:
        notes.leave(f"{kind}.end_epoch", f"{end:g}: the ramp ends with its stage")
        end = length
    function = rest.pop("inter_func", "cubic")
    if function not in _EXPONENTS:
        notes.leave(f"{kind}.inter_func", f"{function!r} is not here; the cubic ramp is used")
    return {
        "begin": share(begin, length) or None,
        "end": share(end, length),
        "exponent": None if function == "cubic" else _EXPONENTS.get(function),
    }


def _second_order(rest: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """Return the options of obert-prune that have a setting of their own."""
    rest.pop("grad_sampler_kwargs", None)
    notes.leave(
        "OBSPruningModifier.grad_sampler_kwargs",
        "gradients are those of the training's last steps, not of extra batches",
    )
    return {name: kind(rest.pop(key)) for key, (name, kind) in _OBS.items() if key in rest}


def begins(item: Modifier, length: float, notes: Notes) -> bool:
    """Return whether a ramp begins before ``length`` epochs are over; list it if not."""
    start = number_of(item.settings.get("start_epoch", 0.0), f"{item.kind}.start_epoch")
    if start >= length:
        why = f"masks can move up to epoch {length:g} of its stage, so it prunes nothing"
        notes.leave(f"{item.kind} of epoch {start:g}", why)
    return start < length


def lock(items: Sequence[Modifier], length: float, notes: Notes) -> str:
    """Return the pattern-lock of constant pruning modifiers, in a stage of ``length`` epochs."""
    for item in items:
        rest = dict(item.settings)
        start, stop = rest.pop("start_epoch", 0.0), rest.pop("end_epoch", -1.0)
        if start > 0:
            notes.leave(f"{item.kind}.start_epoch", f"{start:g}: a lock starts with its stage")
        if 0 <= stop < length:
            notes.leave(f"{item.kind}.end_epoch", f"{stop:g}: a lock holds to the end")
        for key in ("params", *WITHOUT_EFFECT):
            rest.pop(key, None)
        notes.leave_rest(item.kind, rest)
    kind = items[0].kind
    names = list(dict.fromkeys(name for item in items for name in named(item)))
    chosen = _selection(names, kind, notes)
    if chosen["roles"] == ALL_LINEARS:
        del chosen["roles"]
    text = pass_text("pattern-lock", **chosen)
    for item in items:
        notes.carry(item.kind, text)
    return text


def quantization(item: Modifier, begin: float, length: float, notes: Notes) -> str:
    """Return the quantize-prepare of a stage that lasts from ``begin`` to ``length``."""
    rest = dict(item.settings)
    stop = rest.pop("disable_quantization_observer_epoch", None)
    freeze = None
    if isinstance(stop, int | float) and begin < stop < length:
        freeze = share(stop - begin, length - begin)
    elif isinstance(stop, int | float) and 0 <= stop <= begin:
        where = f"{item.kind}.disable_quantization_observer_epoch"
        notes.leave(where, f"{stop:g}: observers learn from epoch {begin:g} to the end")
    parts = names_of(rest.pop("submodules", None), f"{item.kind}.submodules")
    modules = [name for name in parts if not _is_table(name)]
    if quantizes_tables(item):
        where = f"{item.kind}.quantize_embeddings"
        notes.carry(where, "quantize-embeddings")
        notes.leave(where, "tables are float32 in training, int8 with a scale for each row after")
    if rest.pop("quantize_embedding_activations", False):
        notes.leave(f"{item.kind}.quantize_embedding_activations", "what tables give stays float32")
    for key in ("start_epoch", "end_epoch", "quantize_embeddings"):
        rest.pop(key, None)
    if rest.pop("freeze_bn_stats_epoch", None) is not None:
        notes.leave(f"{item.kind}.freeze_bn_stats_epoch", "an encoder has no batch normalisation")
    where = f"{item.kind}.exclude_module_types"
    for kind in names_of(rest.pop("exclude_module_types", None), where):
        if kind not in _FLOAT_ANYWAY:
            notes.leave(where, f"{kind}: exclude weights by name")
    outputs = rest.pop("quantize_linear_activations", True)
    nothing = ("^$",) if parts and not modules else ()
    text = pass_text(
        "quantize-prepare",
        requantize="all" if outputs else "none",
        freeze=freeze,
        include=tuple(f"^{re.escape(name)}\\." for name in modules) or nothing,
        exclude=_ignored(rest.pop("ignore", None), item.kind, notes),
    )
    notes.carry(item.kind, text)
    defaults = _QUANTIZATION_DEFAULTS
    notes.leave_rest(
        item.kind,
        {key: each for key, each in rest.items() if each and each != defaults.get(key)},
    )
    return text


def quantizes_tables(item: Modifier) -> bool:
    """Return whether a quantization modifier takes embedding tables too."""
    parts = names_of(item.settings.get("submodules"), f"{item.kind}.submodules")
    wanted = bool(item.settings.get("quantize_embeddings", True))
    return wanted and (not parts or any(_is_table(name) for name in parts))


def _is_table(module: str) -> bool:
    return _EMBEDDINGS in module.rpartition(".")[2]


def _ignored(names: Any, kind: str, notes: Notes) -> tuple[str, ...]:
    """Return expressions of modules that stay float32; types of modules are told apart by case."""
    found: list[str] = []
    for name in names_of(names, f"{kind}.ignore"):
        if name.startswith("re:"):
            found += expressions([name])
        elif not name[:1].isupper():
            found.append(f"^{re.escape(name)}\\.")
        elif name not in _FLOAT_ANYWAY:
            notes.leave(f"{kind}.ignore", f"{name}: exclude weights by name")
    return tuple(found)


def _targets(rest: dict[str, Any], kind: str, notes: Notes) -> list[tuple[float, Any]]:
    """Return pairs of a final sparsity and the parameters that it is for."""
    everywhere = "params" not in rest
    final, params = rest.pop("final_sparsity", None), rest.pop("params", None)
    if isinstance(final, dict):
        if params:
            notes.leave(f"{kind}.params", f"{params!r}: final_sparsity names the weights itself")
        return [(_sparsity(value, kind), names) for value, names in final.items()]
    return [(_sparsity(final, kind), EVERY[0] if everywhere else params)]


def _sparsity(value: Any, kind: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"expected a share of zeros, found {value!r}", where=f"{kind}.final_sparsity"
        ) from error


def _is_mask(mask: Any) -> bool:
    """Whether there is a pattern for a mask type."""
    if isinstance(mask, list):
        return len(mask) == 2 and all(isinstance(each, int) and each > 0 for each in mask)
    found = _GROUPS.fullmatch(str(mask))
    return mask in (*_SINGLE, *_FOURS) or bool(found and 0 < int(found[1]) < int(found[2]))


def _pattern(mask: Any, sparsity: float) -> str | None:
    """Return the pattern, None for single weights; of N:M the side is told by the sparsity."""
    if mask in _SINGLE:
        return None
    if mask in _FOURS:
        return "1x4"
    if isinstance(mask, list):
        return f"{mask[0]}x{mask[1]}"
    if found := _GROUPS.fullmatch(mask):
        first, group = int(found[1]), int(found[2])
        kept = first if abs(1 - first / group - sparsity) < 1e-6 else group - first
        return f"{kept}:{group}"
    return None


def _selection(names: Any, kind: str, notes: Notes) -> dict[str, tuple[str, ...]]:
    chosen = some_names(names, f"{kind}.params")
    if chosen == EVERY[:1]:
        return {"roles": ALL_LINEARS}
    if chosen == EVERY[1:]:
        notes.leave(f"{kind}.params", "__ALL__: matrices alone; biases and norms have no masks")
        return {"roles": _EVERY_MATRIX}
    return {"roles": _EVERY_MATRIX, "include": expressions(chosen)}
