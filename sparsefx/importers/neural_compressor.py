"""Pruning configurations of Intel Neural Compressor, in YAML or as the keywords in JSON."""

from __future__ import annotations

import re
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.neural_compressor_epochs import import_epochs, version_of
from sparsefx.importers.result import Imported, Notes, pass_text
from sparsefx.recipe import Recipe, Stage, Training

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
    "pruning_op_types": ["Conv", "Linear"],
}
_OLD_NAMES = {
    "names": "op_names",
    "excluded_names": "excluded_op_names",
    "prune_type": "pruning_type",
    "prune_frequency": "pruning_frequency",
    "update_frequency": "pruning_frequency",
    "prune_layer_type": "pruning_op_types",
    "max_layer_sparsity_ratio": "max_sparsity_ratio_per_op",
}
_EXTRA = ("extra_excluded_op_names", "extra_excluded_names")
_KINDS = {"basic_magnitude": "magnitude", "BasicMagnitude": "magnitude"}
_BY_GRADIENTS = (
    "movement-prune is nearest, which weighs by weight times gradient too, summed over training "
    "with its sign; for what training leaves alone, write magnitude into the file"
)
_NEAREST = {
    "snip": _BY_GRADIENTS,
    "snip_progressive": _BY_GRADIENTS,
    "snip_momentum": _BY_GRADIENTS,
    "snip_momentum_progressive": _BY_GRADIENTS,
    "gradient_sensitivity": "prune-heads with score-heads is nearest: heads by their gradients",
    "block_mask": "prune-neurons and prune-heads are nearest, which take whole rows and columns",
    "retrain_free": "obert-prune is nearest, which too weighs by gradients of some batches",
    "group_lasso": "reweighted-l1 is nearest, a penalty on single weights",
}
_EXPONENTS = {"cube": 3.0, "linear": 1.0}
_ALL_LINEARS = ("encoder", "pooler", "head", "other")
_FREE_EPOCHS = 3


def is_neural_compressor(content: object) -> bool:
    """Return whether a parsed file is a pruning configuration of this tool."""
    return _general(content) is not None


def import_neural_compressor(content: dict[str, Any], *, name: str, who: str) -> Imported:
    """Turn a configuration into a recipe of one stage; each pruner becomes a pass.

    Which version it is of, 1.x or 2.x, its words tell.

    Args:
        content: The parsed file, in which a tagged pruner is a mapping.
        name: Name of the recipe.
        who: The file, for errors.

    Raises:
        RecipeError: Nothing of it can be carried over, a value is wrong, or it may be of either
            version.
    """
    general = dict(_general(content) or {})
    version = version_of(content, general)
    if version == "1.x":
        return import_epochs(content, general, name, who)
    if version == "either":
        raise RecipeError(
            "nothing tells 1.x (magnitudes, in epochs) from 2.x (snip_momentum in blocks, steps)",
            who=who,
            where="weight_compression",
            hint="add what it stands for: 'end_epoch: 4' for 1.x, 'pruning_type' for 2.x",
        )
    pruners = general.pop("pruners", None) or general.pop("pruning_configs", None) or [{}]
    notes = Notes()
    for key in sorted(content.keys() - {"pruning", "pruners", "pruning_configs", *general}):
        notes.leave(key, "only the section 'pruning' is carried over")
    texts, last = [], 0
    for index, pruner in enumerate(pruners):
        merged = _merged(general, pruner or {})
        last = max(last, _steps(merged, "end_step", f"pruners[{index}]", who))
        texts += _Pruner(merged, f"pruners[{index}]", notes, who).texts()
    texts = _without_locks(texts, notes)
    if not texts:
        reasons = "; ".join(str(item) for item in notes.left_out)
        raise RecipeError(f"no pruner can be carried over: {reasons}", who=who, where="pruners")
    notes.leave(
        "the run",
        "number of steps, learning rate, distillation and data are the script's: the stage "
        + (f"ends with the ramp, at step {last}" if last else f"has {_FREE_EPOCHS} epochs"),
    )
    locked = any(text.startswith("pattern-lock") for text in texts)
    stage = Stage(
        name="sparse",
        pipeline=tuple(texts),
        training=Training(steps=last) if last else Training(epochs=_FREE_EPOCHS),
        after=("fold-masks",) if locked else ("pattern-lock", "fold-masks"),
    )
    source = "A pruning configuration of Intel Neural Compressor 2.x."
    return notes.result(Recipe(name=name, source=source, stages=(stage,)), who)


def _general(content: object) -> dict[str, Any] | None:
    """Return the settings that all pruners share, with the list of pruners in it."""
    if not isinstance(content, dict):
        return None
    if "pruners" in content or "pruning_configs" in content:
        return content
    approach = content.get("pruning")
    approach = approach.get("approach") if isinstance(approach, dict) else None
    for version in ("weight_compression", "weight_compression_v2"):
        if isinstance(approach, dict) and isinstance(approach.get(version), dict):
            found: dict[str, Any] = approach[version]
            return found
    return None


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(key, key): value for key, value in settings.items()}


def _merged(general: dict[str, Any], pruner: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a pruner; names that it excludes besides come on top."""
    more = [name for key in _EXTRA for name in _listed(pruner.get(key))]
    own = _renamed({key: value for key, value in pruner.items() if key not in _EXTRA})
    merged = {**_DEFAULTS, **_renamed(general), **own}
    merged["pruning_type"] = _KINDS.get(merged["pruning_type"], merged["pruning_type"])
    if more:
        merged["excluded_op_names"] = [*_listed(merged.get("excluded_op_names")), *more]
    return merged


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _steps(settings: dict[str, Any], key: str, where: str, who: str) -> int:
    """Return a number of steps.

    Raises:
        RecipeError: The file has something else there.
    """
    try:
        return int(settings[key])
    except (TypeError, ValueError) as error:
        why = f"expected a number of steps, found {settings[key]!r}"
        raise RecipeError(why, who=who, where=f"{where}.{key}") from error


def _nearest(kind: object) -> str:
    """Say what of sparsefx comes nearest to a criterion that it does not have."""
    return _NEAREST.get(str(kind), "magnitude and pattern_lock are carried over")


def _without_locks(texts: list[str], notes: Notes) -> list[str]:
    """A lock takes over all masks at once, so beside a ramp it would end it."""
    kept = [text for text in texts if not text.startswith("pattern-lock")]
    if kept and len(kept) != len(texts):
        notes.leave("pattern_lock", "beside a pruner with a ramp; import it as a stage of its own")
    if not kept and len(texts) > 1:
        notes.leave("pattern_lock", "only the first of several locks; one lock takes all masks")
    return kept or texts[:1]


class _Pruner:
    """One pruner, its settings merged with the shared ones."""

    def __init__(self, settings: dict[str, Any], where: str, notes: Notes, who: str) -> None:
        self._rest = settings
        self._where = where
        self._notes = notes
        self._who = who

    def texts(self) -> list[str]:
        """Return the pass, or nothing when the criterion is not here."""
        kind = self._rest.pop("pruning_type")
        if kind == "pattern_lock":
            text = pass_text(
                "pattern-lock", include=self._names("op_names"), exclude=self._barred()
            )
            for key in _DEFAULTS:
                self._rest.pop(key, None)
        elif kind in ("magnitude", "magnitude_progressive"):
            text = self._magnitude()
        else:
            self._leave("pruning_type", f"the criterion {kind!r} is not here; {_nearest(kind)}")
            return []
        if kind == "magnitude_progressive":
            self._leave("pruning_type", "progressive masks; plain ones at each choice are used")
        self._notes.carry(f"{self._where} ({kind})", text)
        self._notes.leave_rest(self._where, self._rest)
        return [text]

    def _magnitude(self) -> str:
        rest = self._rest
        scope, pattern, sparsity = self._pattern(
            str(rest.pop("pattern")), float(rest.pop("target_sparsity")), rest.pop("pruning_scope")
        )
        begin, end = int(rest.pop("start_step")), int(rest.pop("end_step"))
        kinds = rest.pop("pruning_op_types")
        for kind in sorted({kinds} if isinstance(kinds, str) else set(kinds)):
            if kind == "Linear":
                continue
            self._leave("pruning_op_types", f"{kind}: only linears are pruned by this recipe")
        decay, every = rest.pop("sparsity_decay_type"), int(rest.pop("pruning_frequency"))
        if end > begin and decay not in _EXPONENTS:
            self._leave("sparsity_decay_type", f"there is no {decay!r} ramp; the cubic one is used")
        return pass_text(
            "magnitude-prune",
            sparsity=sparsity,
            begin=max(begin, 0) or None,
            end=max(end, begin, 0) or None,
            exponent=1.0 if decay == "linear" else None,
            frequency=every if end > begin else None,
            scope=scope if scope != "tensor" else None,
            pattern=pattern if pattern != "unstructured" else None,
            roles=_ALL_LINEARS,
            include=self._names("op_names"),
            exclude=self._barred(),
        )

    def _pattern(self, text: str, sparsity: float, scope: Any) -> tuple[str, str, float]:
        scope = "global" if scope == "global" else "tensor"
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            pruned, group = int(found[1]), int(found[2])
            if abs(sparsity - pruned / group) > 1e-9:
                self._leave("target_sparsity", f"{sparsity}: {text} means {pruned / group:g}")
            if scope == "global":
                self._leave("pruning_scope", f"{text} decides in each group by itself")
            return "tensor", f"{group - pruned}:{group}", pruned / group
        if re.fullmatch(r"\d+x\d+", text):
            return scope, "unstructured" if text == "1x1" else text, sparsity
        raise RecipeError(
            f"the pattern {text!r} cannot be carried over",
            who=self._who,
            where=f"{self._where}.pattern",
            hint="blocks such as 4x1 and groups such as 2:4 can; whole channels cannot",
        )

    def _barred(self) -> tuple[str, ...]:
        return self._names("excluded_op_names")

    def _names(self, key: str) -> tuple[str, ...]:
        found = self._rest.pop(key, None) or ()
        return (found,) if isinstance(found, str) else tuple(found)

    def _leave(self, key: str, reason: str) -> None:
        self._notes.leave(f"{self._where}.{key}", reason)
