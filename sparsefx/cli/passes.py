"""``sparsefx passes``: what there is, with options and contracts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sparsefx.cli.console import stderr, stdout
from sparsefx.errors import RegistryError

if TYPE_CHECKING:
    from sparsefx.passbase import Pass

__all__ = ["command"]


def command(
    name: Annotated[str | None, typer.Argument(help="Show this pass whole.")] = None,
) -> None:
    """List the passes, or show the documentation and the options of one."""
    from sparsefx import registry

    if name is not None:
        _show_one(registry.pass_class(name))
        return
    table = Table("pass", "what it does", "requires", "establishes", "destroys", box=None)
    for each in registry.names("passes"):
        try:
            cls = registry.pass_class(each)
        except RegistryError as error:
            stderr.print(str(error), markup=False)
            continue
        table.add_row(each, _summary(cls), *_contract(cls))
    stdout.print(table)
    stdout.print("\nsparsefx passes NAME shows the options of one.")


def _summary(cls: type[Pass]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _contract(cls: type[Pass]) -> tuple[str, str, str]:
    groups = (cls.requires, cls.establishes, cls.destroys)
    requires, establishes, destroys = (", ".join(sorted(str(p) for p in g)) for g in groups)
    return requires, establishes, destroys


def _show_one(cls: type[Pass]) -> None:
    stdout.print(f"[bold]{cls.name}[/]\n")
    stdout.print(inspect.getdoc(cls) or "", markup=False)
    table = Table("option", "type", "default", box=None)
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "(required)" if default is dataclasses.MISSING else repr(default)
        table.add_row(field.name, str(field.type), shown)
    stdout.print()
    stdout.print(table)
    requires, establishes, destroys = _contract(cls)
    forbids = ", ".join(sorted(str(p) for p in cls.forbids))
    for label, text in (
        ("requires", requires),
        ("establishes", establishes),
        ("destroys", destroys),
        ("forbids", forbids),
    ):
        if text:
            stdout.print(f"{label}: {text}")
