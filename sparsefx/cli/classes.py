"""What a saved model's head says, and which output stands for which label of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsefx.cli.console import stderr
from sparsefx.errors import DataError
from sparsefx.problem import MULTI_LABEL, SINGLE_LABEL, Kind

if TYPE_CHECKING:
    from sparsefx.cli.saved import Made
    from sparsefx.train.data.tables import Table

__all__ = ["Head", "Labels", "given_classes", "labels_for"]


@dataclass(frozen=True)
class Head:
    """What is known of a model's head.

    Attributes:
        model: Where the model is, for messages.
        outputs: How many there are for a text or a token, if that is known.
        per_word: Whether they are for each token.
        config: Hugging Face configuration of the model; may be empty.
        made: What the run knows that made the model.
        names: Names of the classes in the head's order, if somebody knows them.
        naming: How the user gives them to the command.
    """

    model: str
    outputs: int | None
    per_word: bool
    config: Mapping[str, Any]
    made: Made | None
    names: tuple[str, ...] | None
    naming: str = "give --classes in the order of the head"


@dataclass(frozen=True)
class Labels:
    """How the labels of a table are read for a head; None where the table itself says it.

    Attributes:
        column: Their column, or a column for each class.
        kind: What they are.
        classes: In the order of the head.
    """

    column: str | tuple[str, ...]
    kind: Kind | None
    classes: tuple[str, ...] | None


def labels_for(table: Table, column: str | tuple[str, ...] | None, head: Head, who: str) -> Labels:
    """Return how the labels of a table are read for a head.

    Args:
        table: The data.
        column: Of the labels, or one for each class; None: found by name.
        head: Of the model.
        who: The command.

    Raises:
        DataError: The labels are names, and nobody knows which output is which; or labels are of
            another form than what the head predicts; or columns are not the head's classes.
    """
    from sparsefx.train.data.columns import find_label
    from sparsefx.train.data.labels import is_list

    made, names = head.made, head.names
    kind = made.kind if made is not None and made.kind != "text" else None
    if column is None and kind in (None, "multi-label") and names and {*names} <= {*table.columns}:
        column = names
    column = column or find_label(table.columns, table.origin)
    lists = isinstance(column, str) and any(map(is_list, table.column(column)))
    if head.per_word and not lists:
        raise _predicts_tokens(who, head.model)
    several = isinstance(column, tuple) or (lists and not head.per_word)
    if kind is None:  # else the run tells what the head was trained for
        _check_problem(head, who, several=several)
    if isinstance(column, tuple):
        return Labels(_in_order(table, column, names, who), "multi-label", None)
    if head.outputs == 1 and not lists:
        return Labels(column, "regression", None)
    if kind is not None:
        return Labels(column, kind, names)
    if lists:
        kind = "token-classification" if head.per_word else "multi-label"
    return Labels(column, kind, _numbered(table, column, head, who) if names is None else names)


def _predicts_tokens(who: str, model: str) -> DataError:
    return DataError(
        "labels of texts cannot be compared with what the model predicts for each token",
        who=who,
        where=model,
        hint="give a model with a classification or regression head; or in the data, lists of "
        "words with lists of their labels, as jsonl or conll",
    )


def _check_problem(head: Head, who: str, *, several: bool) -> None:
    """Refuse any number of labels for a head that was trained to choose one, or the reverse."""
    problem = head.config.get("problem_type")
    if problem == MULTI_LABEL and not several and not head.per_word:
        raise _gives_several(who, head.model)
    if problem == SINGLE_LABEL and several:
        raise DataError(
            "a text has any number of labels in the data, and this model was trained to choose one "
            f"(problem_type {problem}): whether an output is above 0 decides nothing",
            who=who,
            where=head.model,
            hint="give a label column with one class for each text; if the model does give any "
            f"number of them, its config.json is wrong: set problem_type to {MULTI_LABEL} there",
        )


def _in_order(
    table: Table, columns: tuple[str, ...], names: tuple[str, ...] | None, who: str
) -> tuple[str, ...]:
    """Return the columns of classes in the order of the head's, where that is known."""
    if names is None:
        return columns
    if {*columns} != {*names}:
        raise DataError(
            f"the label columns {', '.join(columns)} are not the model's classes",
            who=who,
            where=table.origin,
            hint=f"give a column for each of {', '.join(names)}",
        )
    return names


def _gives_several(who: str, model: str) -> DataError:
    return DataError(
        "each text has one label in the data, and this model was trained to give it any "
        f"number of them (problem_type {MULTI_LABEL}): its largest output decides nothing",
        who=who,
        where=model,
        hint="give lists of labels, or --label with a column of 0 and 1 for each class; if it does "
        "tell one class from others, its config.json is wrong: set problem_type to "
        f"{SINGLE_LABEL} there",
    )


def given_classes(
    text: str, outputs: int | None, known: tuple[str, ...] | None, *, who: str
) -> tuple[str, ...]:
    """Return the names that the user gives, held to what is known of the head.

    Raises:
        DataError: There are more or fewer of them than outputs, or two are the same.
    """
    found = tuple(name.strip() for name in text.split(","))
    if len(set(found)) < len(found) or (outputs and len(found) != outputs):
        head = f"the head has {outputs} outputs" if outputs else "each has one output"
        raise DataError(
            f"{text!r} are {len(set(found))} different names; {head}",
            who=who,
            where="--classes",
            hint="name each class once, in the order of the head",
        )
    if known and known != found:
        told = f"{', '.join(found)}; the model was saved with {', '.join(known)}"
        stderr.print(f"warning: outputs are taken for {told}")
    return found


def _numbered(table: Table, label: str, head: Head, who: str) -> tuple[str, ...] | None:
    """Return the numbers of the classes, where the labels are such; None leaves it to the data.

    Raises:
        DataError: The labels are names, and nobody knows which output is which.
    """
    from sparsefx.train.data.labels import as_number, found_labels

    found = found_labels(table, label) - {"", "None"}
    values = [as_number(name) for name in found]
    if None in values:
        listed = ", ".join(sorted(found)[:5])
        raise DataError(
            f"column {label!r} names classes ({listed}), and the model does not know which of its "
            f"outputs is which",
            who=who,
            where=table.origin,
            hint=head.naming,
        )
    whole = all(value is not None and value.is_integer() for value in values)
    return tuple(map(str, range(head.outputs))) if whole and head.outputs else None
