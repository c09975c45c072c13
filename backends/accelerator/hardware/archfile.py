"""Architectures as YAML files: presets that ship, and a user's own."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from sparsefx.backends.accelerator.hardware.architecture import Architecture
from sparsefx.backends.accelerator.hardware.catalogue import (
    build_engine,
    build_format,
    check_engine_kind,
)
from sparsefx.backends.accelerator.hardware.quantity import Quantity
from sparsefx.errors import TargetError, closest, did_you_mean
from sparsefx.recipe.text import UniqueKeyLoader

__all__ = ["dump_architecture", "load_architecture", "preset_names", "read_architecture"]

_FOLDER = files("sparsefx.backends.accelerator.hardware") / "presets"


def preset_names() -> list[str]:
    """Names of the architectures that ship.

    >>> "anton" in preset_names()
    True
    """
    names = (entry.name for entry in _FOLDER.iterdir())
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml") and n[0] != "_")


def load_architecture(name_or_path: str | Path) -> Architecture:
    """Load a preset by name or an architecture by the path of its file.

    Raises:
        TargetError: When there is no such preset or file, or it is malformed.
    """
    text = str(name_or_path)
    if text in preset_names():
        return _preset(text)
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise TargetError(
            f"there is no architecture {text!r}",
            who="accelerator",
            where="arch",
            hint=f"{_presets(text)}; or give the path of a .yaml file",
        )
    if not path.is_file():
        raise TargetError(
            "there is no such file", who="accelerator", where=text, hint=_presets(path.stem)
        )
    return read_architecture(path.read_text(encoding="utf-8"), str(path))


def _presets(name: str) -> str:
    """The preset that was meant, if one is near, and the names of all."""
    known = preset_names()
    listed = f"presets: {', '.join(known)}"
    near = closest(name, known)
    return f"{near}; {listed}" if near else listed


@cache
def _preset(name: str) -> Architecture:
    return read_architecture((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name)


def read_architecture(text: str, where: str) -> Architecture:
    """Read and check the YAML form of an architecture; `where` names it in errors.

    A file may start from a preset and change parts of it: `base: anton`. `energy` is the name of a
    table that ships, or a table; `energy_changes` replaces single entries of it.

    Raises:
        TargetError: Listing every wrong key, unit and value with its path.
    """
    tree = _tree(text, where)
    tree["energy"] = _merge(_energy(tree.get("energy"), where), tree.pop("energy_changes", {}))
    try:
        architecture = TypeAdapter(Architecture).validate_python(tree)
    except ValidationError as error:
        check_engine_kind(tree.get("engine"), where)
        hint = ""
        missing = [item["loc"] for item in error.errors() if item["type"] == "missing"]
        if missing == [("engine", "numbers")]:
            hint = "another kind of engine takes its own numbers: give them, or {} for its defaults"
        elif missing:
            hint = "start from a preset and change parts of it, such as 'base: anton'"
        raise TargetError(_listed(error), who="accelerator", where=where, hint=hint) from error
    build_engine(architecture.engine, where)
    build_format(architecture.weights, where)
    return architecture


def _tree(text: str, where: str) -> dict[str, Any]:
    """Read the YAML tree and put it over that of its base."""
    try:
        tree = yaml.load(text, Loader=UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise TargetError(f"this is not YAML: {error}", who="accelerator", where=where) from error
    if not isinstance(tree, dict):
        raise TargetError("expected keys and values", who="accelerator", where=where)
    base = tree.pop("base", None)
    if base is None:
        return tree
    file = _FOLDER / f"{base}.yaml"
    if not file.is_file():
        hint = did_you_mean(str(base), preset_names())
        raise TargetError(
            f"there is no preset {base!r}", who="accelerator", where=f"{where}: base", hint=hint
        )
    merged: dict[str, Any] = _merge(_tree(file.read_text(encoding="utf-8"), str(base)), tree)
    return merged


def _energy(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    table = _FOLDER / f"_energy-{value}.yaml"
    if not table.is_file():
        known = [e.name[8:-5] for e in _FOLDER.iterdir() if e.name.startswith("_energy-")]
        raise TargetError(
            f"there is no energy table {value!r}",
            who="accelerator",
            where=f"{where}: energy",
            hint=did_you_mean(value, known),
        )
    return yaml.safe_load(table.read_text(encoding="utf-8"))


def _merge(base: Any, change: Any) -> Any:
    """Put `change` over `base`, key by key; where the kind of an engine changes, all of it."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in change.items()}}


def _listed(error: ValidationError) -> str:
    found: dict[str, str] = {}
    for item in error.errors():
        # pydantic names the readers it tried in the path: no part of the file
        path = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
        why = item["msg"].removeprefix("Value error, ")
        if item["type"] == "list_type":
            why = "expected a list, each entry behind a '-'"
        if item["type"] == "unexpected_keyword_argument":
            why = f"there is no such key; {_meant(path)}"
        found.setdefault(path, why)
    noun = "mistake" if len(found) == 1 else "mistakes"
    lines = "".join(f"\n  - {path}: {why}" for path, why in found.items())
    return f"{len(found)} {noun} in the architecture:{lines}"


def _meant(path: str) -> str:
    """Suggest a key for an unknown one, from the description's parts."""
    *parents, key = path.split(".")
    part: Any = Architecture
    for name in (name for name in parents if not name.isdigit()):
        kind = get_type_hints(part).get(name) if part else None
        part = next((found for found in (kind, *get_args(kind)) if is_dataclass(found)), None)
    return did_you_mean(key, [field.name for field in fields(part)] if part else [])


def dump_architecture(architecture: Architecture) -> dict[str, Any]:
    """The plain tree of an architecture, as its YAML file would hold it."""
    tree: dict[str, Any] = _plain(architecture)
    return tree


def _plain(node: Any) -> Any:
    if isinstance(node, Quantity):
        return str(node)
    if is_dataclass(node):
        node = {field.name: getattr(node, field.name) for field in fields(node)}
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if value is not None}
    return [_plain(item) for item in node] if isinstance(node, list) else node
