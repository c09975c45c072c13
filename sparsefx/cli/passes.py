"""``sparsefx passes``: what there is, with options and contracts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.console import filled, say, stderr, stdout
from sparsefx.errors import PassError, RegistryError
from sparsefx.option_types import option_words

if TYPE_CHECKING:
    from sparsefx.passbase import Pass
    from sparsefx.target import Target

__all__ = ["command", "show_options", "summary"]

_KINDS = ("requires", "establishes", "destroys", "forbids")


def command(
    name: Annotated[str | None, typer.Argument(help="Show this pass whole.")] = None,
) -> None:
    """List the passes, or show the documentation and the options of one."""
    from sparsefx import registry

    if name is not None:
        _show_one(registry.pass_class(name))
        return
    rows = []
    for each in registry.names("passes"):
        try:
            cls = registry.pass_class(each)
            rows.append((each, f"{summary(cls)}\n{_contract_line(cls)}".rstrip()))
        except (RegistryError, PassError) as error:
            stderr.print(str(error))
    stdout.print(filled(("pass", "what it does"), rows))
    stdout.print("\nsparsefx passes NAME shows the options of one.")


def summary(cls: type) -> str:
    """Return the first line of a class's documentation."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _contract(cls: type[Pass]) -> tuple[str, str, str, str]:
    """What it requires, establishes, destroys and forbids, with the option if it takes one."""
    from sparsefx.hooks import contract_of

    declared = {kind: {str(p): "" for p in getattr(cls, kind)} for kind in _KINDS}
    for item in cls.variants():
        options = str(item).removeprefix(cls.name).strip("{}")
        for kind, known in declared.items():
            for each in getattr(contract_of(item), kind):
                known.setdefault(str(each), f" ({options})" if options else "")
    texts = (", ".join(name + more for name, more in sorted(declared[k].items())) for k in _KINDS)
    requires, establishes, destroys, forbids = texts
    return requires, establishes, destroys, forbids


def _contract_line(cls: type[Pass]) -> str:
    """What the order of passes hangs on, in a line; "" where it hangs on nothing."""
    told = zip(_KINDS[:3], _contract(cls), strict=False)
    return "; ".join(f"{kind} {names}" for kind, names in told if names)


def _show_one(cls: type[Pass]) -> None:
    show_options(cls)
    for label, text in zip(_KINDS, _contract(cls), strict=True):
        if text:
            stdout.print(f"{label}: {text}")


def show_options(cls: type[Pass] | type[Target]) -> None:
    """Print the documentation and the options of a pass or target."""
    stdout.print(f"{cls.name}\n", style="bold")
    say(inspect.getdoc(cls) or "")
    rows, taken = [], option_words(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "(required)" if default is dataclasses.MISSING else repr(default)
        rows.append((field.name, taken.get(field.name, str(field.type)), shown))
    stdout.print()
    stdout.print(filled(("option", "takes", "default"), rows))
