"""Which teacher layer a student layer learns from."""

from __future__ import annotations

from typing import Literal

from sparsefx.errors import PassError

__all__ = ["LayerMap", "check_layer_map", "pair_layers"]

LayerMap = Literal["identity", "skip", "skip-inner", "last", "final"] | tuple[tuple[int, int], ...]
_NAMES = ("identity", "skip", "skip-inner", "last", "final")


def check_layer_map(value: object) -> str:
    """Return why ``value`` is no layer map, or an empty text."""
    if isinstance(value, str):
        return "" if value in _NAMES else f"expected one of {', '.join(_NAMES)}, or pairs"
    if not isinstance(value, tuple) or not value or not all(_is_pair(pair) for pair in value):
        return (
            "expected a name, or a tuple of (student layer, teacher layer), such as ((0,1),(1,3))"
        )
    return ""


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(index, int) and index >= 0 for index in value)
    )


def pair_layers(layers: LayerMap, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Return (student layer, teacher layer) pairs, counted from 0.

    ``identity``: i with i. ``skip``: i with (i + 1) * teacher / student - 1, every k-th layer
    (TinyBERT). ``skip-inner``: the same without the last pair (BERT-PKD Skip). ``last``: the
    student's layers with the teacher's topmost ones (BERT-PKD Last). ``final``: the last with the
    last alone (MiniLM).

    >>> pair_layers("skip", 3, 6), pair_layers("last", 2, 6), pair_layers("final", 2, 6)
    (((0, 1), (1, 3), (2, 5)), ((0, 4), (1, 5)), ((1, 5),))
    >>> pair_layers("skip-inner", 3, 6)
    ((0, 1), (1, 3))

    Args:
        layers: The map.
        student: Number of layers of the student.
        teacher: Number of layers of the teacher.

    Raises:
        PassError: When the map does not fit these numbers.
    """
    have = f"the student has {student} layers, the teacher {teacher}"
    if isinstance(layers, tuple):
        for low, high in layers:
            if low >= student or high >= teacher:
                raise _misfit(layers, f"there is no pair ({low}, {high}): {have}")
        return layers
    if layers == "final":
        return ((student - 1, teacher - 1),)
    if layers == "identity" and student != teacher:
        raise _misfit(layers, f"{have}; use 'skip', 'last', 'final' or explicit pairs")
    if layers in ("skip", "skip-inner") and teacher % student:
        raise _misfit(layers, f"{have}, which is no multiple; give explicit pairs")
    if layers == "last" and teacher < student:
        raise _misfit(layers, have)
    step, offset = (1, teacher - student) if layers == "last" else (teacher // student, 0)
    pairs = tuple((i, (i + 1) * step - 1 + offset) for i in range(student))
    if layers != "skip-inner":
        return pairs
    if student == 1:
        raise _misfit(layers, f"{have}, and the last one is left out")
    return pairs[:-1]


def _misfit(layers: LayerMap, why: str) -> PassError:
    return PassError(
        f"the layer map {layers!r} does not fit: {why}",
        who="distill",
        where="layers",
        hint="layers are counted from 0",
    )
