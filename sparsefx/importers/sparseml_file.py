"""SparseML's file form: YAML with tagged modifiers, alone or as the front matter of Markdown."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from sparsefx.errors import RecipeError
from sparsefx.importers.equations import resolve_equations

__all__ = ["Modifier", "SparsemlStage", "read_stages", "tagged_loader", "yaml_part"]

_FRONT_MATTER = re.compile(r"^---[ \t]*$", re.MULTILINE)


class Modifier(NamedTuple):
    """A tagged mapping, e.g. ``!GMPruningModifier``."""

    kind: str
    settings: dict[str, Any]


class SparsemlStage(NamedTuple):
    """The modifiers of one stage; a flat recipe is one stage without a name."""

    name: str
    modifiers: tuple[Modifier, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads any tagged mapping as a Modifier, and lets anchors be set again.

    YAML allows the latter (1.2, section 3.2.2.2), PyYAML does not, and published recipes do it.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Forget an anchor of the same name before a node."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # a stub of PyYAML
        if not isinstance(event, yaml.AliasEvent):
            self.anchors.pop(getattr(event, "anchor", None), None)
        return super().compose_node(parent, index)


def _tagged(loader: _Loader, kind: str, node: yaml.Node) -> Modifier:
    settings = (
        loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    )
    return Modifier(kind, {str(key): value for key, value in settings.items()})


_Loader.add_multi_constructor("!", _tagged)


def tagged_loader() -> type[yaml.SafeLoader]:
    """Return the YAML loader that knows tagged mappings."""
    return _Loader


def yaml_part(text: str) -> str:
    """Return the front matter of a Markdown text, or the text itself when it has none."""
    parts = _FRONT_MATTER.split(text)
    return parts[1] if len(parts) > 1 else text


def read_stages(content: dict[str, Any], who: str) -> tuple[SparsemlStage, ...]:
    """Sort the keys of a recipe into stages, modifiers and variables; compute the equations.

    Raises:
        RecipeError: An equation is wrong, or there is no modifier.
    """
    variables = {key: value for key, value in content.items() if not _holds_modifiers(value)}
    stages = []
    flat = _modifiers(content)
    if flat:
        stages.append(SparsemlStage("", flat))
    for key, value in content.items():
        if isinstance(value, dict) and (found := _modifiers(value)):
            stages.append(SparsemlStage(key.removesuffix("_stage"), found))

    if not stages:
        raise RecipeError("it holds no modifier", who=who)
    return tuple(_resolved(stage, content, variables, who) for stage in stages)


def _resolved(
    stage: SparsemlStage, content: dict[str, Any], variables: dict[str, Any], who: str
) -> SparsemlStage:
    own = content.get(f"{stage.name}_stage", content.get(stage.name, {}))
    scope = {**variables, **(own if isinstance(own, dict) else {})}
    modifiers = tuple(
        Modifier(item.kind, resolve_equations(item.settings, scope, who))
        for item in stage.modifiers
    )
    return SparsemlStage(stage.name, modifiers)


def _modifiers(content: dict[str, Any]) -> tuple[Modifier, ...]:
    found: list[Modifier] = []
    for value in content.values():
        items = value if isinstance(value, list) else [value]
        found += [item for item in items if isinstance(item, Modifier)]
    return tuple(found)


def _holds_modifiers(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_modifiers(item) for item in value.values())
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, Modifier) for item in items)
