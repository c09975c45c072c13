"""What modifiers of SparseML are in the training of a stage: distillation, decay, freezing."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefx.importers.result import Notes, number_of, pass_text
from sparsefx.importers.sparseml_file import Modifier
from sparsefx.importers.sparseml_names import EVERY, expressions, some_names

__all__ = ["WITHOUT_EFFECT", "distillation", "frozen", "span_of", "weight_decay"]

WITHOUT_EFFECT = ("log_types", "update_frequency", "end_comparator", "constant_logging")
"""Settings that do not change what is trained."""


def span_of(item: Modifier, end: float) -> tuple[float, float]:
    """Return the epochs from and to which a modifier is at work; ``end`` where it does not say."""
    stop = item.settings.get("end_epoch", -1.0)
    return max(0.0, item.settings.get("start_epoch", 0.0)), stop if stop >= 0 else end


def distillation(
    items: Sequence[Modifier], span: tuple[float, float], notes: Notes
) -> tuple[str | None, float]:
    """Return the distill pass of a stage, None where none is at work, and the labels' weight."""
    begin, end = span
    spans = [(item, *span_of(item, end)) for item in items]
    at_work = [(item, a, b) for item, a, b in spans if a < end and b > begin]
    for item, _, _ in at_work[1:]:
        notes.leave(item.kind, "a stage has one; the first is taken")
    if not at_work:
        return None, 1.0
    item, start, stop = at_work[0]
    rest = dict(item.settings)
    if start > begin or stop < end:
        notes.leave(item.kind, f"epochs {start:g} to {stop:g}: it holds for its whole stage")
    hardness = number_of(rest.pop("hardness", 0.5), f"{item.kind}.hardness", 0.0, 1.0)
    if hardness <= 0:
        notes.leave(item.kind, "hardness 0 is no distillation")
        return None, 1.0
    outputs = rest.pop("distill_output_keys", None) or []
    outputs = [outputs] if isinstance(outputs, str | int) else outputs
    if numbered := [each for each in outputs if not isinstance(each, str)]:
        notes.leave(f"{item.kind}.distill_output_keys", f"{numbered}: outputs have names here")
        outputs = []
    text = pass_text(
        "distill",
        logits=hardness,
        temperature=number_of(rest.pop("temperature", 2.0), f"{item.kind}.temperature"),
        outputs=tuple(outputs),
    )
    notes.carry(item.kind, f"{text}, label_weight {1 - hardness:g}")
    for key in ("start_epoch", "end_epoch", *WITHOUT_EFFECT):
        rest.pop(key, None)
    notes.leave(f"{item.kind}: the teacher", "it is not in the file; ./teacher is its folder here")
    notes.leave_rest(item.kind, rest)
    return text, round(1.0 - hardness, 9)


def weight_decay(items: Sequence[Modifier], begin: float, notes: Notes) -> float | None:
    """Return the weight decay at epoch ``begin``; None when none is set."""
    found = None
    for item in items:
        if span_of(item, begin)[0] > begin:
            notes.leave(item.kind, f"it starts in the middle of the stage of epoch {begin:g}")
            continue
        if found is not None:
            notes.leave(item.kind, f"weight_decay {found:g}: a later modifier sets it again")
        rest = dict(item.settings)
        where = f"{item.kind}.weight_decay"
        found = number_of(rest.pop("weight_decay", 0.01), where, low=0.0)
        notes.carry(item.kind, f"weight_decay {found:g}")
        for key in ("start_epoch", "end_epoch", *WITHOUT_EFFECT):
            rest.pop(key, None)
        notes.leave_rest(item.kind, rest)
    return found


def frozen(items: Sequence[Modifier], span: tuple[float, float], notes: Notes) -> tuple[str, ...]:
    """Return the expressions of the parameters that are not trained in a stage."""
    found: list[str] = []
    for item in items:
        start, stop = span_of(item, span[1])
        names = some_names(item.settings.get("params", EVERY[1]), f"{item.kind}.params")
        if item.settings.get("trainable", True):
            notes.leave(item.kind, f"{', '.join(names)}: what is not frozen trains anyway")
        elif names[0] in EVERY:
            notes.leave(item.kind, f"{names[0]}: a stage with all of it frozen is no training")
        elif start > span[0] or stop < span[1]:
            if start < span[1] and stop > span[0]:
                why = f"epochs {start:g} to {stop:g}: a stage freezes from its start to its end"
                notes.leave(item.kind, f"{', '.join(names)}, {why}")
        else:
            found += expressions(names)
            notes.carry(item.kind, f"freeze {list(expressions(names))}")
            known = ("params", "trainable", "start_epoch", "end_epoch", *WITHOUT_EFFECT)
            rest = {key: each for key, each in item.settings.items() if key not in known}
            notes.leave_rest(item.kind, rest)
    return tuple(found)
