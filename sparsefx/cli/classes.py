"""Which output of a saved model's head stands for which label of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsefx.cli.console import stderr
from sparsefx.errors import DataError

if TYPE_CHECKING:
    from sparsefx.cli.saved import Made
    from sparsefx.train.data.labels import Kind
    from sparsefx.train.data.tables import Table

__all__ = ["given_classes", "head_classes"]


def head_classes(
    table: Table,
    label: str,
    outputs: int | None,
    made: Made | None,
    names: tuple[str, ...] | None,
    *,
    who: str,
) -> tuple[Kind | None, tuple[str, ...] | None]:
    """Return what the head computes, and its classes; None where the data say it.

    Args:
        table: The data.
        label: Its column of labels.
        outputs: Outputs of the head, if that is known.
        made: What the run knows that made the model.
        names: Names of the classes in the head's order, if somebody knows them.
        who: The command.

    Raises:
        DataError: The labels are names, and nobody knows which output is which.
    """
    if outputs == 1:
        return "regression", None
    if made is not None and made.kind == "classification":
        return "classification", names
    return None, _numbered(table, label, outputs, who) if names is None else names


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
        stderr.print(f"warning: outputs are taken for {told}", markup=False)
    return found


def _numbered(table: Table, label: str, outputs: int | None, who: str) -> tuple[str, ...] | None:
    """Return the numbers of the classes, where the labels are such; None leaves it to the data.

    Raises:
        DataError: The labels are names, and nobody knows which output is which.
    """
    from sparsefx.train.data.labels import as_number

    found = {str(cell).strip() for cell in table.column(label)} - {"", "None"}
    values = [as_number(name) for name in found]
    if None in values:
        listed = ", ".join(sorted(found)[:5])
        raise DataError(
            f"column {label!r} names classes ({listed}), and the model does not know which of its "
            f"outputs is which",
            who=who,
            where=table.origin,
            hint="give --classes in the order of the head",
        )
    whole = all(value is not None and value.is_integer() for value in values)
    return tuple(map(str, range(outputs))) if whole and outputs else None
