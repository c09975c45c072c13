"""The files of an engine or a format that is not of sparsefx: what a result hangs on."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path

from sparsefx.backends.accelerator.hardware.architecture import Architecture

__all__ = ["own_sources"]


def own_sources(architecture: Architecture) -> list[Path]:
    """Return the files of the user's own engine and format, sorted; none for those of sparsefx.

    With the modules that they may import from their own package, or from the folder that they lie
    in; also those that they import late, or never.
    """
    kinds = (architecture.engine.kind, architecture.weights.kind)
    modules = {kind.partition(":")[0] for kind in kinds if ":" in kind}
    return sorted({file for name in modules for file in _files(name)})


def _files(name: str) -> set[Path]:
    file = importlib.import_module(name).__file__
    if file is None:
        return set()
    first, depth = Path(file), name.count(".") + (Path(file).name == "__init__.py")
    place, top = first.parents[depth], name.partition(".")[0]
    loose = name == top and depth == 0 and "site-packages" not in place.parts
    found: set[Path] = set()
    pending = [name]
    while pending:
        module = pending.pop()
        source = _source(place, module) if loose or module.partition(".")[0] == top else None
        if source is not None and source not in found:
            found.add(source)
            pending += _imports(module, source)
    return found


def _source(place: Path, module: str) -> Path | None:
    """Return the file of a module whose outermost package lies in a folder, if it is there."""
    path = place.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _imports(module: str, file: Path) -> Iterator[str]:
    """Yield the names of what a module may import, with their packages; some are no modules."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _from(node, package)
        else:
            continue
        for name in names:
            yield from accumulate(name.split("."), "{}.{}".format)


def _from(node: ast.ImportFrom, package: str) -> list[str]:
    relative = "." * node.level + (node.module or "")
    with suppress(ImportError):  # one that Python could not resolve either, as under TYPE_CHECKING
        return [f"{resolve_name(relative, package)}.{each.name}" for each in node.names]
    return []
