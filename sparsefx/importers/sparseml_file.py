"""SparseML's file form: YAML with tagged modifiers, alone or as the front matter of Markdown."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from sparsefx.errors import RecipeError
from sparsefx.importers.equations import resolve_equations

__all__ = ["Modifier", "SparsemlStage", "TaggedLoader", "kinds_in", "read_stages", "yaml_part"]

_KIND = re.compile(r"\w+Modifier")
_TIMES = {"start": "start_epoch", "end": "end_epoch", "update": "update_frequency"}
_OF_PRUNING = {
    "targets": "params",
    "mask_structure": "mask_type",
    "update_scheduler": "inter_func",
    "apply_globally": "global_sparsity",
}
"""Names of 1.6 and later, and those of before, which are the ones that are read here."""
_FRONT_MATTER = re.compile(r"^---[ \t]*$", re.MULTILINE)
_NOTHING = re.compile(r"(?:\s|[#%].*$|<!--[\s\S]*?-->)*", re.MULTILINE)
"""What may stand before front matter: comments of YAML or Markdown."""


class Modifier(NamedTuple):
    """A tagged mapping, e.g. ``!GMPruningModifier``."""

    kind: str
    settings: dict[str, Any]


class SparsemlStage(NamedTuple):
    """The modifiers of one stage; a flat recipe is one stage without a name.

    Those without tags, of 1.6 and later, leave the number of epochs to the trainer.
    """

    name: str
    modifiers: tuple[Modifier, ...]
    tagged: bool = True


class TaggedLoader(yaml.SafeLoader):
    """SafeLoader that reads any tagged mapping as a Modifier, and lets anchors be set again.

    YAML allows the latter (1.2, section 3.2.2.2), PyYAML does not, and published recipes do it.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Forget an anchor of the same name before a node."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # a stub of PyYAML
        if not isinstance(event, yaml.AliasEvent):
            self.anchors.pop(getattr(event, "anchor", None), None)
        return super().compose_node(parent, index)


def _tagged(loader: TaggedLoader, kind: str, node: yaml.Node) -> Modifier:
    settings = (
        loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    )
    return Modifier(kind, {str(key): value for key, value in settings.items()})


TaggedLoader.add_multi_constructor("!", _tagged)


def yaml_part(text: str) -> str:
    """Return the front matter of a Markdown text, or the text itself when it has none.

    A line of dashes at the end of YAML begins nothing.
    """
    before, *parts = _FRONT_MATTER.split(text)
    if not parts:
        return text
    if _NOTHING.fullmatch(before):
        return parts[0]
    return text if any(part.strip() for part in parts) else before


def read_stages(content: dict[str, Any]) -> tuple[SparsemlStage, ...]:
    """Sort the keys of a recipe into stages, modifiers and variables; compute the equations.

    Raises:
        RecipeError: An equation is wrong, or there is no modifier.
    """
    variables = {key: value for key, value in content.items() if not _holds_modifiers(value)}
    tagged = _tagged_anywhere(content)
    stages = []
    flat = _modifiers(content)
    if flat:
        stages.append(SparsemlStage("", flat, tagged))
    for key, value in content.items():
        if isinstance(value, dict) and (found := _modifiers(value)):
            stages.append(SparsemlStage(key.removesuffix("_stage"), found, tagged))
    if not stages:
        raise RecipeError("it holds no modifier")
    return tuple(_resolved(stage, content, variables) for stage in stages)


def _resolved(
    stage: SparsemlStage, content: dict[str, Any], variables: dict[str, Any]
) -> SparsemlStage:
    own = content.get(f"{stage.name}_stage", content.get(stage.name, {}))
    scope = {**variables, **(own if isinstance(own, dict) else {})}
    modifiers = tuple(
        Modifier(item.kind, resolve_equations(item.settings, scope)) for item in stage.modifiers
    )
    return SparsemlStage(stage.name, modifiers, stage.tagged)


def _modifiers(content: dict[str, Any]) -> tuple[Modifier, ...]:
    return tuple(item for value in content.values() for item in _group(value))


def _group(value: Any) -> list[Modifier]:
    """Return the modifiers of a group: tagged ones in a list, or mappings by their names."""
    found: list[Modifier] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Modifier):
            found.append(item)
        elif _is_named(item):
            found += [Modifier(kind, _renamed(kind, each or {})) for kind, each in item.items()]
    return found


def _is_named(item: Any) -> bool:
    """Whether it is a mapping from names of modifiers to their settings."""
    if not isinstance(item, dict) or not item:
        return False
    return all(
        _KIND.fullmatch(str(key)) and (each is None or isinstance(each, dict))
        for key, each in item.items()
    )


def _renamed(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    names = {**_TIMES, **(_OF_PRUNING if "Pruning" in kind else {})}
    return {names.get(key, key): value for key, value in settings.items()}


def kinds_in(content: dict[str, Any]) -> set[str]:
    """Return the names of all modifiers of a recipe."""
    parts = [content, *(value for value in content.values() if isinstance(value, dict))]
    return {item.kind for part in parts for item in _modifiers(part)}


def _tagged_anywhere(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_tagged_anywhere(item) for item in value.values())
    if isinstance(value, list):
        return any(_tagged_anywhere(item) for item in value)
    return isinstance(value, Modifier)


def _holds_modifiers(value: Any) -> bool:
    if isinstance(value, dict) and any(_holds_modifiers(item) for item in value.values()):
        return True
    return bool(_group(value))
