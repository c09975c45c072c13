"""Which tool wrote a file, and the importer for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sparsefx.errors import RecipeError
from sparsefx.importers.neural_compressor import import_neural_compressor, is_neural_compressor
from sparsefx.importers.research_package import import_research_package, is_research_package
from sparsefx.importers.result import Imported
from sparsefx.importers.sparseml import import_sparseml, trains
from sparsefx.importers.sparseml_file import Modifier, TaggedLoader, kinds_in, yaml_part
from sparsefx.recipe.text import kind_of

__all__ = ["import_recipe", "import_text"]

_KNOWN = (
    "known: SparseML recipes (YAML or Markdown), pruning configurations of Intel Neural Compressor "
    "1.x and 2.x (a section, or the keywords of WeightPruningConfig), JSON configurations of the "
    "Model-Compression-Research-Package"
)
_SPARSEML_TAG = re.compile(r"!\w+Modifier\b")
_Importer = Callable[..., Imported]


def import_recipe(place: str | Path) -> Imported:
    """Read another tool's recipe or configuration.

    Args:
        place: A ``.yaml``, ``.yml``, ``.md`` or ``.json`` file.

    Returns:
        The recipe, and what of the file it does not hold, with reasons.

    Raises:
        RecipeError: The file cannot be read, its format is not known, or a value is wrong.
    """
    path = Path(place)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no text: {error}"
        raise RecipeError(
            f"the file cannot be read: {reason}", who=str(path), hint=_KNOWN
        ) from error
    return import_text(text, name=path.stem, who=str(path))


def import_text(text: str, *, name: str, who: str = "import") -> Imported:
    """Read the text of such a file; ``name`` becomes the name of the recipe.

    Raises:
        RecipeError: As for :func:`import_recipe`; what raises it leaves the file's name to this.
    """
    try:
        return _imported(text, name)
    except RecipeError as error:
        error.who = who
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(
            f"a value of the file is of another kind than its tool allows: {why}",
            who=who,
            hint="numbers of steps are whole, sparsities lie in 0..1, and lists are lists",
        ) from error


def _imported(text: str, name: str) -> Imported:
    content = _parsed(text)
    if not isinstance(content, dict):
        raise RecipeError(kind_of(content), where="line 1", hint=_KNOWN)
    if "stages" in content and "name" in content:
        raise RecipeError("it is a sparsefx recipe already", hint="use it as it is")
    return _importer_for(text, content)(_untagged(content, text), name=name)


def _importer_for(text: str, content: dict[str, Any]) -> _Importer:
    if _SPARSEML_TAG.search(text):
        return import_sparseml
    if is_neural_compressor(content):
        return import_neural_compressor
    if is_research_package(content):
        return import_research_package
    if kinds := kinds_in(content):
        if trains(kinds):
            return import_sparseml
        raise RecipeError(
            f"{', '.join(sorted(kinds))}: the one-shot form of llm-compressor, which has no "
            "training to carry over",
            hint=_KNOWN,
        )
    raise RecipeError(
        f"the format is not known (its keys: {', '.join(map(str, content))})", hint=_KNOWN
    )


def _parsed(text: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        return yaml.load(yaml_part(text), Loader=TaggedLoader)  # a SafeLoader
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RecipeError(f"not JSON: {error.msg}", where=where, hint=_KNOWN) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(
            f"not YAML: {getattr(error, 'problem', None) or error}",
            where=where,
            hint=_KNOWN,
        ) from error


def _untagged(value: Any, text: str) -> Any:
    """Read tagged mappings as plain ones, unless they are SparseML's."""
    if _SPARSEML_TAG.search(text):
        return value
    if isinstance(value, Modifier):
        return _untagged(value.settings, text)
    if isinstance(value, list):
        return [_untagged(item, text) for item in value]
    if isinstance(value, dict):
        return {key: _untagged(item, text) for key, item in value.items()}
    return value
