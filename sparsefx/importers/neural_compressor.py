"""Pruning configurations of Intel Neural Compressor, in YAML or as the keywords in JSON."""

from __future__ import annotations

from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.neural_compressor_epochs import import_epochs, version_of
from sparsefx.importers.neural_compressor_pruner import Pruner, steps_of
from sparsefx.importers.neural_compressor_stage import Found, one_stage, read_training
from sparsefx.importers.result import ALL_LINEARS, Imported, Notes, names_of
from sparsefx.recipe import Training

__all__ = ["import_neural_compressor", "is_neural_compressor"]

_DEFAULTS: dict[str, Any] = {
    "target_sparsity": 0.9,
    "pruning_type": "snip_momentum",
    "pattern": "4x1",
    "start_step": 0,
    "end_step": 0,
    "pruning_scope": "global",
    "pruning_frequency": 1,
    "sparsity_decay_type": "exp",
    "max_sparsity_ratio_per_op": 0.98,
    "pruning_op_types": ["Conv", "Linear"],
}
_FLAT = _DEFAULTS.keys() - {"pattern", "start_step", "end_step", "pruning_frequency"} | {
    "op_names",
    "excluded_op_names",
}
_SECTIONS = ("weight_compression", "weight_compression_v2", "weight_compression_pytorch")
_OLD_NAMES = {
    "names": "op_names",
    "excluded_names": "excluded_op_names",
    "prune_type": "pruning_type",
    "exclude_names": "excluded_op_names",
    "not_to_prune_names": "excluded_op_names",
    "prune_domain": "pruning_scope",
    "prune_frequency": "pruning_frequency",
    "update_frequency": "pruning_frequency",
    "update_frequency_on_step": "pruning_frequency",
    "prune_layer_type": "pruning_op_types",
    "max_layer_sparsity_ratio": "max_sparsity_ratio_per_op",
    "max_sparsity_ratio_per_layer": "max_sparsity_ratio_per_op",
    "min_sparsity_ratio_per_layer": "min_sparsity_ratio_per_op",
}
_EXTRA = ("extra_excluded_op_names", "extra_excluded_names")
_KINDS = {"basic_magnitude": "magnitude", "BasicMagnitude": "magnitude"}
_ALL_BUT_HEAD = ("encoder", "pooler", "other")
_WITH_HEAD = ("weight_compression", "weight_compression_pytorch")
"""The older sections; 2.x leaves the last linear of a model alone by itself."""
_FREE_EPOCHS = 3


def is_neural_compressor(content: object) -> bool:
    """Return whether a parsed file is a pruning configuration of this tool."""
    return _general(content) is not None


def import_neural_compressor(content: dict[str, Any], *, name: str) -> Imported:
    """Turn a configuration into a recipe of one stage; each pruner becomes a pass.

    Which version it is of, 1.x or 2.x, its words tell.

    Args:
        content: The parsed file, in which a tagged pruner is a mapping.
        name: Name of the recipe.

    Raises:
        RecipeError: Nothing of it can be carried over, a value is wrong, or it may be of either
            version.
    """
    general = {key: _untagged(value) for key, value in (_general(content) or {}).items()}
    version = version_of(content, general)
    if version == "either":
        raise RecipeError(
            "nothing tells 1.x (magnitudes, in epochs) from 2.x (snip_momentum in blocks, steps)",
            where="weight_compression",
            hint="add what it stands for: 'end_epoch: 4' for 1.x, 'pruning_type' for 2.x",
        )
    pruners = general.pop("pruners", None) or general.pop("pruning_configs", None) or [{}]
    notes = Notes()
    section = _section(content, notes)
    if version == "1.x":
        return import_epochs(content, general, pruners, name, notes)
    roles = ALL_LINEARS if section in _WITH_HEAD else _ALL_BUT_HEAD
    found: list[Found] = []
    last = 0
    for index, pruner in enumerate(pruners):
        merged = _merged(general, pruner or {})
        last = max(last, steps_of(merged, "end_step", f"pruners[{index}]"))
        found += Pruner(merged, roles, f"pruners[{index}]", notes).found()
    release = "1.14" if section == "weight_compression_pytorch" else "2.x"
    return one_stage(name, release, found, _training(content, last, notes), notes)


def _section(content: dict[str, Any], notes: Notes) -> str:
    """Return the section that is read, empty without sections; list what stands beside it."""
    if _general(content) is content:
        return ""
    approach = content["pruning"]["approach"]
    section = next(key for key in _SECTIONS if isinstance(approach.get(key), dict))
    for key in sorted(content.keys() - {"pruning"}):
        notes.leave(key, "only the section 'pruning' is carried over")
    for key in sorted(approach.keys() - {section}):
        notes.leave(f"pruning.approach.{key}", f"the section {section} is read")
    return section


def _training(content: dict[str, Any], last: int, notes: Notes) -> Training:
    """Return how the stage trains: to the end of the ramp, or for as long as the file says."""
    epochs, optimizer = read_training(content, notes)
    if epochs and last:
        notes.leave("pruning.train.epoch", f"{epochs:g}: the stage ends with the ramp")
    epochs = epochs or _FREE_EPOCHS
    notes.leave(
        "the run",
        "number of steps, learning rate, distillation and data are the script's: the stage "
        + (f"ends with the ramp, at step {last}" if last else f"has {epochs:g} epochs"),
    )
    if last:
        return Training(steps=last, optimizer=optimizer)
    return Training(epochs=epochs, optimizer=optimizer)


def _general(content: object) -> dict[str, Any] | None:
    """Return the settings that all pruners share, with the list of pruners in it."""
    if not isinstance(content, dict):
        return None
    if "pruners" in content or "pruning_configs" in content:
        return content
    approach = content.get("pruning")
    approach = approach.get("approach") if isinstance(approach, dict) else None
    for section in _SECTIONS:
        if isinstance(approach, dict) and isinstance(approach.get(section), dict):
            found: dict[str, Any] = approach[section]
            return found
    flat = _FLAT & content.keys()  # the keywords of WeightPruningConfig alone
    return content if len(flat) > 1 or "pruning_type" in flat else None


def _untagged(value: Any) -> Any:
    """Return a list of pruners without their tags: JSON writes ``!Pruner`` as a key around each."""
    if isinstance(value, list):
        return [_untagged(each) for each in value]
    if isinstance(value, dict) and len(value) == 1:
        ((key, inner),) = value.items()
        return inner if str(key).lstrip("!").startswith("Pruner") else value
    return value


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by their names of 2.x; null stands for the default."""
    newest_last = sorted(settings, key=lambda key: key != "update_frequency")
    return {
        _OLD_NAMES.get(key, key): settings[key] for key in newest_last if settings[key] is not None
    }


def _merged(general: dict[str, Any], pruner: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a pruner; names that it excludes besides come on top."""
    merged = {**_DEFAULTS, **_renamed(general), **_renamed(pruner)}
    more = [name for key in _EXTRA for name in names_of(merged.pop(key, None), key)]
    merged["pruning_type"] = _KINDS.get(merged["pruning_type"], merged["pruning_type"])
    if more:
        barred = names_of(merged.get("excluded_op_names"), "excluded_op_names")
        merged["excluded_op_names"] = [*barred, *more]
    return merged
