"""What each modifier of SparseML is in sparsefx: a pass, or a setting of the training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.result import Notes, pass_text, share
from sparsefx.importers.sparseml_file import Modifier

__all__ = [
    "distillation",
    "frozen",
    "lock",
    "pruning",
    "quantization",
    "reason_for",
    "weight_decay",
]

_EVERY_LINEAR = ("encoder", "pooler", "head", "other")
_EVERY_MATRIX = ("encoder", "pooler", "head", "embedding", "other")
_EXPONENTS = {"cubic": 3.0, "linear": 1.0}
_PASSES = {"OBSPruningModifier": "obert-prune", "MovementPruningModifier": "movement-prune"}
_OBS = {
    "num_grads": ("gradients", int),
    "fisher_block_size": ("block", int),
    "damp": ("damp", float),
}
_FLOAT_ANYWAY = {"LayerNorm", "Tanh", "Softmax", "GELU", "GELUActivation", "Dropout", "Embedding"}
_EMBEDDINGS = "embeddings"
_WITHOUT_EFFECT = ("log_types", "update_frequency", "end_comparator", "constant_logging")


def reason_for(kind: str) -> str:
    """Return why a modifier that is not carried over is not."""
    if "Pruning" in kind and "Layer" not in kind and "Structured" not in kind:
        return "its criterion is not here; magnitude-prune with the same ramp is the nearest"
    return "it has no counterpart"


def pruning(item: Modifier, length: float, notes: Notes, who: str) -> tuple[str, ...]:
    """Return a pruning pass for each final sparsity of a modifier that prunes along a ramp."""
    rest = dict(item.settings)
    kind = _PASSES.get(item.kind, "magnitude-prune")
    more = _second_order(rest, notes) if kind == "obert-prune" else {}
    ramp = _ramp(item.kind, rest, length, notes)
    if rest.pop("leave_enabled", True) is False:
        notes.leave(f"{item.kind}.leave_enabled", "masks hold until they are folded")
    every = float(rest.pop("update_frequency", -1.0))
    initial = rest.pop("init_sparsity", 0.0)
    if not isinstance(initial, int | float):
        notes.leave(f"{item.kind}.init_sparsity", f"{initial}: the ramp starts at 0")
        initial = 0.0
    everywhere = rest.pop("global_sparsity", item.kind.startswith("Global"))
    if everywhere and kind == "movement-prune":
        notes.leave(f"{item.kind}.global_sparsity", "scores are compared within each weight")
        everywhere = False
    rest.pop("end_comparator", None)
    criterion = rest.pop("score_type", "magnitude")
    if criterion != "magnitude":
        notes.leave(f"{item.kind}.score_type", f"{criterion!r} is not here; magnitude is used")
    mask = rest.pop("mask_type", "unstructured")
    texts = []
    for sparsity, names in _targets(rest, item.kind, who):
        text = pass_text(
            kind,
            sparsity=sparsity,
            initial_sparsity=float(initial) or None,
            **ramp,
            frequency=(share(every, length) or None) if every > 0 else None,
            scope="global" if everywhere else None,
            pattern=_pattern(mask, sparsity, item.kind, who),
            **more,
            **_selection(names, item.kind, notes),
        )
        notes.carry(item.kind, text)
        texts.append(text)
    notes.leave_rest(item.kind, rest)
    return tuple(texts)


def _ramp(kind: str, rest: dict[str, Any], length: float, notes: Notes) -> dict[str, Any]:
    """Take the settings of a ramp out of ``rest``; return the options that they become."""
    begin = max(0.0, float(rest.pop("start_epoch", 0.0)))
    end = float(rest.pop("end_epoch", length))
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
        "exponent": 1.0 if function == "linear" else None,
    }


def _second_order(rest: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """Return the options of obert-prune that have a setting of their own."""
    rest.pop("grad_sampler_kwargs", None)
    notes.leave(
        "OBSPruningModifier.grad_sampler_kwargs",
        "gradients are those of the training's last steps, not of extra batches",
    )
    return {name: kind(rest.pop(key)) for key, (name, kind) in _OBS.items() if key in rest}


def lock(item: Modifier, notes: Notes) -> str:
    """Return the pattern-lock of a constant pruning modifier."""
    rest = dict(item.settings)
    start = float(rest.pop("start_epoch", 0.0))
    if start > 0:
        notes.leave(f"{item.kind}.start_epoch", f"{start:g}: a lock starts with its stage")
    for key in ("end_epoch", *_WITHOUT_EFFECT):
        rest.pop(key, None)
    chosen = _selection(rest.pop("params", "__ALL_PRUNABLE__"), item.kind, notes)
    if chosen["roles"] == _EVERY_LINEAR:
        del chosen["roles"]
    text = pass_text("pattern-lock", **chosen)
    notes.carry(item.kind, text)
    notes.leave_rest(item.kind, rest)
    return text


def quantization(item: Modifier, begin: float, length: float, notes: Notes) -> str:
    """Return the quantize-prepare of a stage that lasts from ``begin`` to ``length``."""
    rest = dict(item.settings)
    stop = rest.pop("disable_quantization_observer_epoch", None)
    freeze = None
    if isinstance(stop, int | float) and begin < stop < length:
        freeze = share(stop - begin, length - begin)
    parts = list(rest.pop("submodules", None) or [])
    modules = [name for name in parts if _EMBEDDINGS not in name.rpartition(".")[2]]
    if rest.pop("quantize_embeddings", True):
        notes.leave(f"{item.kind}.quantize_embeddings", "embedding tables stay float32")
    for key in ("start_epoch", "end_epoch", "quantize_embedding_activations"):
        rest.pop(key, None)
    if rest.pop("freeze_bn_stats_epoch", None) is not None:
        notes.leave(f"{item.kind}.freeze_bn_stats_epoch", "an encoder has no batch normalisation")
    for kind in rest.pop("exclude_module_types", None) or []:
        if kind not in _FLOAT_ANYWAY:
            notes.leave(f"{item.kind}.exclude_module_types", f"{kind}: exclude weights by name")
    outputs = rest.pop("quantize_linear_activations", True)
    text = pass_text(
        "quantize-prepare",
        requantize="all" if outputs else "none",
        freeze=freeze,
        include=tuple(f"^{re.escape(name)}\\." for name in modules),
    )
    notes.carry(item.kind, text)
    notes.leave_rest(item.kind, rest)
    return text


def distillation(
    item: Modifier, span: tuple[float, float], notes: Notes
) -> tuple[str | None, float]:
    """Return the distill pass of a stage, None where it is not at work, and the labels' weight."""
    begin, end = span
    rest = dict(item.settings)
    start, stop = float(rest.pop("start_epoch", -1)), float(rest.pop("end_epoch", -1))
    stop = stop if stop >= 0 else end
    if start >= end or stop <= begin:
        return None, 1.0
    if start > begin or stop < end:
        notes.leave(item.kind, f"epochs {start:g} to {stop:g}: it holds for its whole stage")
    hardness = float(rest.pop("hardness", 0.5))
    if hardness <= 0:
        notes.leave(item.kind, "hardness 0 is no distillation")
        return None, 1.0
    outputs = rest.pop("distill_output_keys", None)
    text = pass_text("distill", logits=hardness, temperature=float(rest.pop("temperature", 2.0)))
    what = f"{text}, label_weight {1 - hardness:g}"
    notes.carry(item.kind, what + (f" (outputs {', '.join(outputs)})" if outputs else ""))
    notes.leave(f"{item.kind}: the teacher", "it is not in the file; ./teacher is its folder here")
    notes.leave_rest(item.kind, rest)
    return text, round(1.0 - hardness, 9)


def weight_decay(items: Sequence[Modifier], begin: float, notes: Notes) -> float | None:
    """Return the weight decay at epoch ``begin``; None when none is set."""
    found = None
    for item in items:
        if float(item.settings.get("start_epoch", 0.0)) <= begin:
            found = float(item.settings.get("weight_decay", 0.01))
            notes.carry(item.kind, f"weight_decay {found:g}")
        else:
            notes.leave(item.kind, f"it starts in the middle of the stage of epoch {begin:g}")
    return found


def frozen(items: Sequence[Modifier], notes: Notes) -> tuple[str, ...]:
    """Return the expressions of the parameters that are not trained."""
    found: list[str] = []
    for item in items:
        if item.settings.get("trainable", True) or float(item.settings.get("start_epoch", 0)) > 0:
            notes.leave(item.kind, "a stage freezes parameters from its start, and only so")
            continue
        found += _expressions(item.settings.get("params", ()))
        notes.carry(item.kind, f"freeze {found}")
    return tuple(found)


def _targets(rest: dict[str, Any], kind: str, who: str) -> list[tuple[float, Any]]:
    """Return pairs of a final sparsity and the parameters that it is for."""
    final, params = rest.pop("final_sparsity", None), rest.pop("params", "__ALL_PRUNABLE__")
    if isinstance(final, dict):
        return [(_sparsity(value, kind, who), names) for value, names in final.items()]
    return [(_sparsity(final, kind, who), params)]


def _sparsity(value: Any, kind: str, who: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"expected a share of zeros, found {value!r}", who=who, where=f"{kind}.final_sparsity"
        ) from error


def _pattern(mask: Any, sparsity: float, kind: str, who: str) -> str | None:
    """Return the pattern, None for single weights; of N:M the side is told by the sparsity."""
    if mask == "unstructured":
        return None
    if mask == "block4":
        return "1x4"
    if isinstance(mask, list) and len(mask) == 2:
        return f"{mask[0]}x{mask[1]}"
    if isinstance(mask, str) and (found := re.fullmatch(r"(\d+):(\d+)", mask)):
        first, group = int(found[1]), int(found[2])
        kept = first if abs(1 - first / group - sparsity) < 1e-6 else group - first
        return f"{kept}:{group}"
    raise RecipeError(
        f"the mask type {mask!r} cannot be carried over",
        who=who,
        where=f"{kind}.mask_type",
        hint="unstructured, block4, [R, C] and N:M can",
    )


def _selection(names: Any, kind: str, notes: Notes) -> dict[str, tuple[str, ...]]:
    if names == "__ALL_PRUNABLE__":
        return {"roles": _EVERY_LINEAR}
    if names == "__ALL__":
        notes.leave(f"{kind}.params", "__ALL__: matrices alone; biases and norms have no masks")
        return {"roles": _EVERY_MATRIX}
    return {"roles": _EVERY_MATRIX, "include": _expressions(names)}


def _expressions(names: Any) -> tuple[str, ...]:
    """Return names and ``re:`` expressions, which match from the start, as ours, which search."""
    given = [names] if isinstance(names, str) else list(names)
    return tuple(
        f"^{name[3:]}" if name.startswith("re:") else f"^{re.escape(name)}$" for name in given
    )
