"""What a model tells of a text, and where the configuration of a Hugging Face model says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = [
    "MULTI_LABEL",
    "PROBLEM_TYPES",
    "SINGLE_LABEL",
    "Kind",
    "head_classes",
    "name_classes",
    "named_classes",
    "own_outputs",
]

Kind = Literal["classification", "multi-label", "token-classification", "regression", "text"]
"""What a model learns of a text: its class, any number of classes, the class of each word, a value;
or what passes put into the graph.
"""
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES: Mapping[Kind, str] = {
    "classification": SINGLE_LABEL,
    "multi-label": MULTI_LABEL,
    "regression": "regression",
}
"""Kind -> ``problem_type`` of a configuration, which knows heads for whole texts alone."""


def head_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the order of the head's outputs; () without any.

    >>> head_classes({"id2label": {"1": "good", "0": "bad"}})
    ('bad', 'good')
    """
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def named_classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return :func:`head_classes` where somebody named them; transformers numbers all others.

    >>> named_classes({"id2label": {0: "LABEL_0", 1: "LABEL_1"}})
    """
    found = head_classes(config)
    return None if all(name.startswith("LABEL_") for name in found) else found


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Write the names of a head's classes into the configuration of transformers; none change none.

    Args:
        config: Of the model, which saves it.
        classes: In the order of the head's outputs.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace()
    >>> name_classes(config, ("bad", "good")); config
    namespace(id2label={0: 'bad', 1: 'good'}, label2id={'bad': 0, 'good': 1})
    """
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: index for index, name in enumerate(classes)}


def own_outputs(config: Any, kind: Kind = "classification") -> int | None:
    """Return the outputs of a checkpoint's head for labels of such a kind; None where it has none.

    Args:
        config: Of transformers.
        kind: What the labels are.
    """
    what = "Token" if kind == "token-classification" else "Sequence"
    ends = any(each.endswith(f"For{what}Classification") for each in config.architectures or ())
    return int(config.num_labels) if ends else None
