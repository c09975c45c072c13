"""The files of an engine or a format that is not of sparsefx: what a result hangs on."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from sparsefx.backends.accelerator.hardware.architecture import Architecture

__all__ = ["own_sources"]


def own_sources(architecture: Architecture) -> list[Path]:
    """Return the files of the user's own engine and format, sorted; none for those of sparsefx.

    With the modules that they import from their own package, or from the folder that they lie in.
    """
    kinds = (architecture.engine.kind, architecture.weights.kind)
    modules = {kind.partition(":")[0] for kind in kinds if ":" in kind}
    return sorted({file for name in modules for file in _files(name)})


def _files(name: str) -> set[Path]:
    first, top = importlib.import_module(name), name.partition(".")[0]
    root = Path(str(first.__file__)).parent
    found: set[Path] = set()
    pending = [first]
    while pending:
        module = pending.pop()
        file = Path(module.__file__ or "")
        near = file.is_relative_to(root) and "site-packages" not in file.parts
        own = near or module.__name__.partition(".")[0] == top
        if own and file not in found and file.suffix == ".py":
            found.add(file)
            pending += [sys.modules[each] for each in _imports(module, file) if each in sys.modules]
    return found


def _imports(module: ModuleType, file: Path) -> Iterator[str]:
    """Yield the names of what a module may import; some are no modules."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module.__package__ or "")
            yield from (base, *(f"{base}.{each.name}" for each in node.names))
