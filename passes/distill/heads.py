"""The outputs that classify: those of the student, and the teacher's that go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from sparsefx.errors import PassError, did_you_mean
from sparsefx.inputs.signature import InputSpec, format_type
from sparsefx.problem import head_classes

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = [
    "classes",
    "label_inputs",
    "left_out",
    "logits_outputs",
    "match_heads",
    "over_positions",
]

_ANSWER_LABELS = {"start_logits": "start_positions", "end_logits": "end_positions"}


def logits_outputs(program: Program, only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the outputs that predict: those called logits, else every floating output.

    Args:
        program: Where to look.
        only: The outputs to take instead, where the Program has them.
    """
    floating = {
        name: fact
        for name, node in program.outputs().items()
        if (fact := program.shape_of(node)) and fact.dtype.is_floating_point and fact.dims
    }
    if only:
        return tuple(name for name in only if name in floating)
    named = tuple(name for name in floating if name.endswith("logits"))
    return named or tuple(floating)


def classes(program: Program, name: str) -> int | str | None:
    """Return the classes of an output: its last dimension; None when its shape is not known.

    An output of shape [batch] is a value, which has one.
    """
    fact = program.shape_of(program.outputs()[name])
    if fact is None:
        return None
    return fact.dims[-1] if len(fact.dims) > 1 else 1


def over_positions(name: str, node: fx.Node) -> bool:
    """Return whether an output [batch, sequence] chooses a position, as the start of an answer.

    Args:
        name: Of the output; by it one of a fixed sequence is known.
        node: What it is.
    """
    shape = node.meta["val"].shape
    return len(shape) == 2 and (name in _ANSWER_LABELS or isinstance(shape[1], torch.SymInt))


def left_out(program: Program) -> tuple[str, ...]:
    """Return the floating outputs that :func:`logits_outputs` leaves out by itself."""
    compared = logits_outputs(program)
    facts = {name: program.shape_of(node) for name, node in program.outputs().items()}
    return tuple(
        name
        for name, fact in facts.items()
        if fact and fact.dtype.is_floating_point and name not in compared
    )


def label_inputs(program: Program, only: tuple[str, ...] = ()) -> dict[str, InputSpec]:
    """Return the labels input for each logits output: class indices, or values for one class."""
    found = {}
    for name in logits_outputs(program, only):
        fact = program.shape_of(program.outputs()[name])
        if fact is None:
            continue
        label = _ANSWER_LABELS.get(name, "labels")
        dtype = fact.dtype if classes(program, name) == 1 else torch.int64
        found[name] = InputSpec(label, dtype, fact.dims[:-1] or fact.dims)
    return found


def match_heads(student: Program, teacher: Program, only: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the teacher's output for each of the student's; a single one matches any name.

    Raises:
        PassError: The student has no output to compare, or the teacher has another head, or one
            that counts the same classes in another order.
    """
    ours = logits_outputs(student, only)
    theirs = logits_outputs(teacher, only) or logits_outputs(teacher)
    for name in only:
        if name not in ours:
            raise _no_output(name, student)
    if not ours:
        listed = ", ".join(_described(name, student) for name in student.signature.outputs)
        raise PassError(
            f"the student has no floating-point output to compare: it returns {listed}",
            who="distill",
            hint="set logits=0 and use the hidden term",
        )
    if len(ours) == len(theirs) == 1:
        matched = {ours[0]: theirs[0]}
    else:
        matched = {name: name for name in ours}
    for name, other in matched.items():
        if other not in theirs:
            raise PassError(
                f"the teacher has no output {name!r}; it returns {', '.join(theirs)}",
                who="distill",
                where=name,
                hint=did_you_mean(name, theirs),
            )
        _check_shapes(name, student, teacher, other)
    _check_order(student, teacher)
    return matched


def _check_order(student: Program, teacher: Program) -> None:
    mine, theirs = (head_classes(program.config) for program in (student, teacher))
    if mine != theirs and sorted(mine) == sorted(theirs):
        raise PassError(
            f"the teacher's outputs are {', '.join(theirs)}, the student's {', '.join(mine)}",
            who="distill",
            where="id2label",
            hint="give both models the classes in one order, or set logits=0 and use the hidden "
            "term",
        )


def _no_output(name: str, student: Program) -> PassError:
    """Return the error for a name in ``outputs`` that is no output, or none to compare."""
    if name not in student.signature.outputs:
        why = f"the student has no output {name!r} to compare"
        hint = did_you_mean(name, student.signature.outputs)
    else:
        why = f"the output {_described(name, student)} cannot be compared"
        hint = "name outputs of floating-point numbers that have a batch dimension"
    return PassError(why, who="distill", where="outputs", hint=hint)


def _described(name: str, program: Program) -> str:
    """Return ``'score' (float32[batch])``."""
    fact = program.shape_of(program.outputs()[name])
    return f"{name!r} ({format_type(fact.dtype, fact.dims) if fact else 'of no known shape'})"


def _check_shapes(name: str, student: Program, teacher: Program, other: str) -> None:
    mine = student.shape_of(student.outputs()[name])
    theirs = teacher.shape_of(teacher.outputs()[other])
    ranks = {len(fact.dims) for fact in (mine, theirs) if fact}
    # [batch] and [batch, 1] are a value for each text, both of them.
    is_alike = classes(student, name) == classes(teacher, other) and (
        len(ranks) == 1 or ranks == {1, 2}
    )
    if mine is None or theirs is None or not is_alike:
        shapes = " and ".join(
            str(list(fact.dims)) if fact else "nothing" for fact in (mine, theirs)
        )
        raise PassError(
            f"the teacher has another head: student and teacher return {name!r} of shapes {shapes}",
            who="distill",
            where=name,
            hint="train the teacher on the same task, or set logits=0 and use the hidden term",
        )
