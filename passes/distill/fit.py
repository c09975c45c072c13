"""What has to hold of student and teacher, told from their structure before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsefx.errors import PassError
from sparsefx.passes.analyses.dataflow import last_dim
from sparsefx.passes.analyses.encoder import Encoder, EncoderStructure
from sparsefx.passes.distill.heads import classes, label_inputs, logits_outputs, match_heads
from sparsefx.passes.distill.layer_map import pair_layers
from sparsefx.passes.distill.scope import Pair
from sparsefx.passes.distill.teacher import check_inputs, check_vocabulary
from sparsefx.passes.distill.terms import TERMS

if TYPE_CHECKING:
    from sparsefx.passes.distill.distill import Distill
    from sparsefx.program import Program

__all__ = ["NEEDS_ATTENTION", "NEEDS_LAYERS", "check_all", "check_fit", "paired_layers"]

NEEDS_LAYERS = frozenset(TERMS) - {"logits", "labels"}
"""The terms that compare layers."""
NEEDS_ATTENTION = frozenset({"scores", "probabilities", "value_relation"})
"""Those that compare what happens inside of attention."""


def check_fit(item: Distill, student: Program, teacher: Program | None) -> None:
    """Check that ``item`` can compare these two.

    Args:
        item: The pass, with its terms.
        student: The Program that it would run on.
        teacher: None when the teacher's logits come with the batch.

    Raises:
        PassError: Names what does not fit: outputs, inputs and tables together, or a layer.
    """
    for program in filter(None, (student, teacher)):
        program.infer_shapes()
    if losses := student.signature.losses:
        raise PassError(
            f"the student returns {losses[0]!r} already",
            who="distill",
            where=losses[0],
            hint="capture it without labels, as the labels term adds them; of the passes that put "
            "a loss in, distill comes first",
        )
    if item.logits:
        _check_soft_targets(item, student)
    if item.labels:
        _check_labels(item, student)
    if teacher is None:
        return
    check_all(
        lambda: check_inputs(student, teacher, item.teacher_inputs),
        lambda: check_vocabulary(student, teacher),
        lambda: match_heads(student, teacher, item.outputs) if item.logits else None,
    )
    if NEEDS_LAYERS & set(item.terms):
        _check_layers(item, student.facts(EncoderStructure), teacher.facts(EncoderStructure))


def paired_layers(
    item: Distill, student: Encoder, teacher: Encoder
) -> tuple[tuple[Pair, ...], tuple[Pair, Pair]]:
    """Return the layers that are matched, and the first and last layers of both.

    Raises:
        PassError: One of them is no encoder, or the layer map does not fit.
    """
    ours = student.require("distill")
    theirs = teacher.require("distill (the teacher)")
    pairs = tuple(
        Pair(ours[low], theirs[high])
        for low, high in pair_layers(item.layers, len(ours), len(theirs))
    )
    return pairs, (Pair(ours[0], theirs[0]), Pair(ours[-1], theirs[-1]))


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks and raise what they found as one error: mending one alone would not help."""
    found = []
    for check in checks:
        try:
            check()
        except PassError as error:
            found.append(error)
    if not found:
        return
    first, *others = found
    for other in others:
        first.why += f"\n  also at {other.where}: {other.why}"
    hints = [f"{other.where}: {other.hint}" for other in others if other.hint]
    first.hint = "; ".join([*filter(None, [first.hint]), *hints])
    raise first


def _check_soft_targets(item: Distill, student: Program) -> None:
    if item.logits_loss in ("auto", "mse"):
        return
    for name in logits_outputs(student, item.outputs):
        if classes(student, name) == 1:
            raise PassError(
                f"the output {name!r} has one class: its soft targets are always 1",
                who="distill",
                where="logits_loss",
                hint="for a regression use logits_loss='mse' (or 'auto'), or the labels term",
            )


def _check_labels(item: Distill, student: Program) -> None:
    if student.multi_label:
        raise PassError(
            "the labels term compares with one class, and a text has any number of them",
            who="distill",
            where="labels",
            hint="leave the term out: label_weight in the training of the stage is for all labels",
        )
    names = [spec.name for spec in label_inputs(student, item.outputs).values()]
    if len(set(names)) != len(names) or not names:
        raise PassError(
            f"the labels term needs one classifying output, the student has "
            f"{list(label_inputs(student, item.outputs))}",
            who="distill",
            where="labels",
            hint="leave the term out, or capture a model with one head",
        )


def _check_layers(item: Distill, student: Encoder, teacher: Encoder) -> None:
    pairs, ends = paired_layers(item, student, teacher)
    if any(getattr(item, term) for term in NEEDS_ATTENTION):
        for pair in pairs:
            _same_heads(pair)
    if item.cls:
        for pair in pairs:
            _same_width(pair, "cls")
    if item.cosine:
        _same_width(ends[1], "cosine")


def _same_heads(pair: Pair) -> None:
    ours, theirs = pair.student.core.heads, pair.teacher.core.heads
    if ours != theirs:
        raise PassError(
            f"attention terms need equal numbers of heads: the student has {ours}, the teacher "
            f"{theirs}",
            who="distill",
            where=pair.where,
            hint="leave out scores, probabilities and value_relation; hidden and logits do not "
            "need this",
        )


def _same_width(pair: Pair, term: str) -> None:
    ours, theirs = last_dim(pair.student.hidden), last_dim(pair.teacher.hidden)
    if ours != theirs:
        raise PassError(
            f"the {term} term needs equal widths: the student has {ours}, the teacher {theirs}",
            who="distill",
            where=pair.where,
            hint="the hidden term projects the student's states to the teacher's width",
        )
