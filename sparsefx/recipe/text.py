"""Reading and writing of recipe files: YAML in, YAML out, and errors that name the path."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sparsefx.errors import RecipeError, did_you_mean

__all__ = ["FlowStyleDumper", "UniqueKeyLoader", "explain", "kind_of", "read_yaml"]

_KEY_MESSAGES = {"missing": "this key is missing", "extra_forbidden": "this key is not known"}
_VALUE_MESSAGES = {
    "string_type": "expected a text",
    "tuple_type": "expected a list",
    "model_type": "expected keys with values",
    "invalid_key": "expected a word as key",
}
_KINDS = {dict: "keys with values", list: "a list", str: "a text", int: "a number"}
_KINDS |= {float: "a number", bool: "true or false"}
_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "eps": "epsilon",
    "gradient_clipping": "clip",
    "max_grad_norm": "clip",
    "passes": "pipeline",
}


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice in one mapping."""


def _unique_mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is a list or a mapping", key_node.start_mark
            )
        if key_node.value in seen and key_node.value != "<<":
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key_node.value!r} stands here twice", key_node.start_mark
            )
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, who: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Raises:
        RecipeError: It is not YAML, with line and column; or it is empty or no mapping.
    """
    try:
        found = yaml.load(text, Loader=UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        quotes = "a pass with options stands in quotes inside [...]" if "'{'" in problem else ""
        raise RecipeError(f"not YAML: {problem}", who=who, where=where, hint=quotes) from error
    if isinstance(found, dict):
        return found
    raise RecipeError(
        f"{kind_of(found)}, such as 'name' and 'stages'",
        who=who,
        hint="docs/recipes.md has all keys, and shipped recipes are examples",
    )


def kind_of(found: object) -> str:
    """Return what a file that should hold keys with values holds instead, in words.

    >>> kind_of(None), kind_of([1])
    ('it is empty; expected keys with values', 'it holds a list; expected keys with values')
    """
    kind = _KINDS.get(type(found), repr(found))
    told = "it is empty" if found is None else f"it holds {kind}"
    return f"{told}; expected keys with values"


class FlowStyleDumper(yaml.SafeDumper):
    """SafeDumper that writes lists of numbers in one line, others as blocks."""


def _write_sequence(dumper: yaml.SafeDumper, value: Sequence[Any]) -> yaml.Node:
    numbers = all(isinstance(item, (int, float)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=numbers)


FlowStyleDumper.add_representer(list, _write_sequence)


def _path_of(location: Sequence[str | int]) -> str:
    """Return ``stages[1].training`` for ``("stages", 1, "training")``.

    >>> _path_of(("stages", 1, "training"))
    'stages[1].training'
    """
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def explain(error: ValidationError, model: type[BaseModel], who: str) -> RecipeError:
    """Turn pydantic's findings into one error; ``where`` is the first path, all are listed."""
    findings = [_finding(item, model) for item in error.errors()]
    where, why, hint = findings[0]
    for path, other, _ in findings[1:]:
        why += f"\n  also {path}: {other}"
    return RecipeError(why, who=who, where=where, hint=hint)


def _finding(item: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    about_key = item["type"] in _KEY_MESSAGES
    location = _readable(item["loc"], model, about_key=about_key)
    messages = _KEY_MESSAGES | _VALUE_MESSAGES
    message = messages.get(item["type"], str(item["msg"]).removeprefix("Value error, "))
    hint = ""
    if item["type"] == "extra_forbidden":
        hint = _hint_for(str(location[-1]), _model_at(location[:-1], model))
    if not about_key and not isinstance(item["input"], dict):
        message += "" if repr(item["input"]) in message else f" (found {item['input']!r})"
    return _path_of(location), message[0].lower() + message[1:], hint


def _hint_for(key: str, holder: type[BaseModel]) -> str:
    if _SYNONYMS.get(key) in holder.model_fields:
        return f"it is called {_SYNONYMS[key]!r} here"
    return did_you_mean(key, holder.model_fields)


def _readable(
    location: Sequence[str | int], model: type[BaseModel], *, about_key: bool
) -> list[str | int]:
    """Drop what pydantic adds to a path for the branches of a union, such as 'int'."""
    kept: list[str | int] = []
    for part in location:
        if isinstance(part, int) or part in _model_at(kept, model).model_fields:
            kept.append(part)
    if about_key and (not kept or kept[-1] != location[-1]):
        kept.append(location[-1])
    return kept


def _model_at(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    """Return the settings class at a path; a plain value belongs to the class that holds it."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _class_in(model.model_fields[part].annotation) or model
    return model


def _class_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _class_in(argument)
        if found is not None:
            return found
    return None
