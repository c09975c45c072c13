"""From names to classes: what ships with sparsefx, and what installed packages add.

A package adds passes and targets through the entry point groups ``sparsefx.passes`` and
``sparsefx.targets``. A broken plug-in breaks itself alone: it is listed with its error.
"""

from __future__ import annotations

import importlib
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

from sparsefx.errors import PassError, RegistryError, SpecError, did_you_mean
from sparsefx.hooks import contract_of
from sparsefx.option_types import AS_DATACLASS, lost_options
from sparsefx.passbase import Contract, Pass
from sparsefx.spec import Spec, build, parse_specs

if TYPE_CHECKING:
    from sparsefx.target import Target

__all__ = ["names", "parse_passes", "parse_target", "pass_class", "passes_that", "target_class"]

logger = logging.getLogger(__name__)

Kind = Literal["passes", "targets"]

_TABLE: dict[Kind, dict[str, str]] = {
    "passes": {
        "accelerator-tag": "sparsefx.backends.accelerator.workload.legalise:AcceleratorTag",
        "allocate-sparsity": "sparsefx.backends.accelerator.studies.allocate:AllocateSparsity",
        "balance-banks": "sparsefx.passes.prune.balance_banks:BalanceBanks",
        "decompose-attention": ("sparsefx.passes.structure.decompose_attention:DecomposeAttention"),
        "distill": "sparsefx.passes.distill.distill:Distill",
        "drop-layers": "sparsefx.passes.structure.drop_layers:DropLayers",
        "fixpoint": "sparsefx.pipeline:Fixpoint",
        "fold-masks": "sparsefx.passes.prune.fold_masks:FoldMasks",
        "keep-outputs": "sparsefx.passes.structure.keep_outputs:KeepOutputs",
        "gather-integers": "sparsefx.passes.quantize.gather_integers:GatherIntegers",
        "magnitude-prune": "sparsefx.passes.prune.magnitude:MagnitudePrune",
        "masked-lm": "sparsefx.passes.pretrain.masked_lm:MaskedLm",
        "mlm-head": "sparsefx.passes.pretrain.mlm_head:MlmHead",
        "movement-prune": "sparsefx.passes.prune.movement:MovementPrune",
        "obert-prune": "sparsefx.passes.prune.obert:ObertPrune",
        "pattern-lock": "sparsefx.passes.prune.lock:PatternLock",
        "permute-rows": "sparsefx.passes.structure.permute_rows:PermuteRows",
        "pool-sentences": "sparsefx.passes.structure.pool_sentences:PoolSentences",
        "prune-heads": "sparsefx.passes.structure.prune_heads:PruneHeads",
        "prune-neurons": "sparsefx.passes.structure.prune_neurons:PruneNeurons",
        "quantize-convert": "sparsefx.passes.quantize.convert:QuantizeConvert",
        "quantize-embeddings": "sparsefx.passes.quantize.embeddings:QuantizeEmbeddings",
        "quantize-prepare": "sparsefx.passes.quantize.prepare:QuantizePrepare",
        "quantize-probabilities": (
            "sparsefx.backends.accelerator.workload.probabilities:QuantizeProbabilities"
        ),
        "replace-modules": "sparsefx.passes.structure.replace_modules:ReplaceModules",
        "reweighted-l1": "sparsefx.passes.prune.reweighted_l1:ReweightedL1",
        "rewind-weights": "sparsefx.passes.prune.rewind:RewindWeights",
        "score-heads": "sparsefx.passes.structure.score_heads:ScoreHeads",
        "set-dropout": "sparsefx.passes.structure.set_dropout:SetDropout",
        "shrink-width": "sparsefx.passes.structure.shrink_width:ShrinkWidth",
        "simplify": "sparsefx.passes.simplify.simplify:Simplify",
        "strip-distillation": "sparsefx.passes.distill.strip:StripDistillation",
        "strip-masked-lm": "sparsefx.passes.pretrain.strip:StripMaskedLm",
        "take-successors": "sparsefx.passes.structure.take_successors:TakeSuccessors",
    },
    "targets": {
        "accelerator": "sparsefx.backends.accelerator.target:Accelerator",
        "cpu": "sparsefx.backends.cpu.target:CpuTarget",
        "onnxruntime": "sparsefx.backends.onnxruntime.target:OnnxRuntime",
        "reference": "sparsefx.backends.reference.target:Reference",
    },
}


def names(kind: Kind) -> list[str]:
    """Return the names of all passes or targets, sorted."""
    return sorted({*_TABLE[kind], *_plugins(kind)})


def pass_class(name: str) -> type[Pass]:
    """Return the pass called ``name``.

    Raises:
        RegistryError: When there is none, or its package cannot be imported.
    """
    found: type[Pass] = _resolve("passes", name)
    return found


def target_class(name: str) -> type[Target]:
    """Return the target called ``name``; errors as in :func:`pass_class`."""
    found: type[Target] = _resolve("targets", name)
    return found


def passes_that(fits: Callable[[Contract], object]) -> list[str]:
    """Return, quoted, the text of each pass whose contract fits: ``'simplify'``.

    An option is part of the text where the contract fits with it alone.
    """
    found = []
    for name in names("passes"):
        try:
            found += _texts_of(pass_class(name), fits)
        except (RegistryError, PassError) as error:
            logger.warning("%s", error)  # a broken pass must not hide what is wrong with another
    return sorted(found)


def _texts_of(cls: type[Pass], fits: Callable[[Contract], object]) -> list[str]:
    if fits(Contract(cls.requires, cls.establishes, cls.destroys, cls.forbids)):
        return [f"'{cls.name}'"]
    fitting = (str(item) for item in cls.variants() if fits(contract_of(item)))
    return [f"'{text}'" for text in itertools.islice(fitting, 1)]


def parse_passes(text: str, given: Iterable[type[Pass]] = ()) -> tuple[Pass, ...]:
    """Read passes from their text form, e.g. ``simplify,magnitude-prune{sparsity=0.9}``.

    Args:
        text: Their text form.
        given: Classes to take by their names before those that are installed.

    Raises:
        SpecError: With a caret under what is wrong, and a suggestion.
    """
    own = {cls.name: cls for cls in given}
    return tuple(
        build(own.get(spec.name) or _class_for("passes", spec), spec) for spec in parse_specs(text)
    )


def parse_target(text: str) -> Target:
    """Read one target from its text form, e.g. ``cpu{isa='avx2'}``; errors as above."""
    specs = parse_specs(text)
    if len(specs) != 1:
        raise SpecError("expected exactly one target", text=text, position=0)
    target: Target = build(_class_for("targets", specs[0]), specs[0])
    return target


def _class_for(kind: Kind, spec: Spec) -> type[Any]:
    try:
        return _resolve(kind, spec.name)
    except RegistryError as error:
        raise SpecError(
            error.why, text=spec.text, position=spec.position, hint=error.hint
        ) from error


def _resolve(kind: Kind, name: str) -> type[Any]:
    if place := _TABLE[kind].get(name):
        module, _, attribute = place.partition(":")
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found
    plugins = _plugins(kind).get(name, ())
    singular = "pass" if kind == "passes" else "target"
    if not plugins:
        raise RegistryError(
            f"there is no {singular} {name!r}", where=name, hint=did_you_mean(name, names(kind))
        )
    if len(plugins) > 1:
        givers = " and ".join(_origin(plugin) for plugin in plugins)
        raise RegistryError(
            f"{len(plugins)} plug-ins give a {singular} {name!r}: {givers}",
            where=name,
            hint="uninstall all but one of these packages",
        )
    (plugin,) = plugins
    try:
        loaded: type[Any] = plugin.load()
    except Exception as error:
        raise RegistryError(
            f"the plug-in {plugin.value!r} cannot be imported: {error}",
            where=name,
            hint="mend or uninstall the package that provides it",
        ) from error
    _check_class(kind, loaded, plugin, name)
    if getattr(loaded, "name", None) != name:
        raise RegistryError(
            f"the plug-in {plugin.value!r} is registered as {name!r} but calls itself "
            f"{getattr(loaded, 'name', None)!r}",
            where=name,
        )
    return loaded


def _check_class(kind: Kind, loaded: object, plugin: EntryPoint, name: str) -> None:
    """Refuse what is no class of its kind, or loses its options: else it fails all who list them.

    Raises:
        RegistryError: With what the plug-in has to be.
    """
    from sparsefx.target import Target  # above the pipelines that ask this file for passes

    base = Pass if kind == "passes" else Target
    if not isinstance(loaded, type) or not issubclass(loaded, base):
        raise RegistryError(
            f"the plug-in {_origin(plugin)} is {loaded!r}, not a class derived from "
            f"{base.__name__}",
            where=name,
            hint=f"name a subclass of sparsefx.{base.__name__} in the entry point",
        )
    if lost := lost_options(loaded):
        raise RegistryError(
            f"the plug-in {_origin(plugin)} cannot be used: {lost}", where=name, hint=AS_DATACLASS
        )


def _plugins(kind: Kind) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the plug-ins by name; one that takes a built-in name is left out with a warning.

    More than one for a name are an error of that name alone, when it is asked for.
    """
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=f"sparsefx.{kind}"):
        if point.name in _TABLE[kind]:
            _tell_left_out(_origin(point), point.name)
            continue
        # A package that stands twice on the path gives the same entry twice.
        found.setdefault(point.name, {}).setdefault((_distribution(point), point.value), point)
    return {name: tuple(points.values()) for name, points in sorted(found.items())}


@cache
def _tell_left_out(origin: str, name: str) -> None:
    """Warn once in a process, which asks for the plug-ins again for each name that it meets."""
    logger.warning("%s takes the built-in name %r, and is left out", origin, name)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {_distribution(point)}"
