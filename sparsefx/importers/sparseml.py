"""SparseML recipes, staged or flat: their modifiers become stages of a sparsefx recipe.

SparseML counts in epochs from the start of the run. A stage of sparsefx trains once, with one
schedule of the learning rate; so a run is cut where quantization begins, and steps become shares.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers import sparseml_modifiers as modifiers
from sparsefx.importers import sparseml_training as training
from sparsefx.importers.result import Imported, Notes, number_of
from sparsefx.importers.sparseml_file import Modifier, SparsemlStage, read_stages
from sparsefx.importers.sparseml_overlaps import go_on, with_spared, without_mask
from sparsefx.importers.sparseml_rates import rate_settings
from sparsefx.recipe import OptimizerSettings, Recipe, Stage, Training

__all__ = ["import_sparseml", "trains"]

_PRUNERS = (
    "GMPruningModifier",
    "MagnitudePruningModifier",
    "GlobalMagnitudePruningModifier",
    "OBSPruningModifier",
    "MovementPruningModifier",
)
_LOCK = "ConstantPruningModifier"
_QUANTIZER = "QuantizationModifier"
_DISTILLER = "DistillationModifier"
_RATES = ("SetLearningRateModifier", "LearningRateFunctionModifier", "LearningRateModifier")
_FREE_EPOCHS = 3.0
_FREEZER = "TrainableParamsModifier"
_OTHERS = ("EpochRangeModifier", "SetWeightDecayModifier", _FREEZER)
_KNOWN = frozenset({*_PRUNERS, _LOCK, _QUANTIZER, _DISTILLER, *_RATES, *_OTHERS})


def trains(kinds: Collection[str]) -> bool:
    """Return whether a recipe with these modifiers trains; quantizing may need no training."""
    return bool(_KNOWN.intersection(kinds) - {_QUANTIZER})


def import_sparseml(content: dict[str, Any], *, name: str) -> Imported:
    """Turn the parsed YAML of a SparseML recipe into a recipe.

    Args:
        content: The YAML, its modifiers read by ``sparseml_file.TaggedLoader``.
        name: Name of the recipe.

    Raises:
        RecipeError: An equation is wrong, a stage has no length, or a value is out of range.
    """
    notes = Notes()
    stages: list[Stage] = []
    pruned: list[Modifier] = []
    locks: list[Modifier] = []
    quantizes = tables = False
    for part in read_stages(content):
        reader = _Reader(part, notes, pruned, locks)
        made = reader.stages()
        if reader.folds:
            stages[-1] = stages[-1].model_copy(update={"after": (*stages[-1].after, "fold-masks")})
        stages += made
        pruned, locks = reader.pruned, reader.locks
        quantizes, tables = quantizes or reader.quantizes, tables or reader.tables
    ends = _ends(masked=bool(pruned or locks), quantized=quantizes, tables=tables)
    stages[-1] = stages[-1].model_copy(update={"after": (*stages[-1].after, *ends)})
    source = "A SparseML recipe."
    return notes.result(Recipe(name=name, source=source, stages=tuple(stages)))


def _ends(*, masked: bool, quantized: bool, tables: bool) -> list[str]:
    """Return what ends the last stage: fold the masks, turn fake quantization into integers."""
    ends = ["fold-masks"] if masked else []
    if quantized:
        ends += ["quantize-convert", *(["quantize-embeddings"] if tables else [])]
        ends += ["simplify{inference=True}"]
    return ends


class _Reader:
    """Reads one stage of SparseML: the span between two epochs, and all modifiers in it."""

    def __init__(
        self,
        part: SparsemlStage,
        notes: Notes,
        pruned: Sequence[Modifier],
        locks: Sequence[Modifier],
    ) -> None:
        self.pruned = list(pruned)
        self.locks = list(locks)
        self.folds = False
        self.quantizes = False
        self.tables = False
        part = part._replace(modifiers=tuple(map(_with_numbers, part.modifiers)))
        self._name = part.name
        self._notes = notes
        self._begin, self._end = _epochs(part) or (0.0, _FREE_EPOCHS)
        if not part.tagged:
            length = f"the stage has {self._end - self._begin:g} epochs"
            notes.leave("the run", f"its length is an argument of the trainer: {length}")
        self._modifiers = [self._shifted(item) for item in part.modifiers]
        self._length = self._end - self._begin
        for item in self._of("EpochRangeModifier"):
            notes.carry(item.kind, f"{self._length:g} epochs")

    def stages(self) -> list[Stage]:
        """Return one stage, or two where quantization begins in the middle."""
        self._leave_unknown()
        cut = self._quantization_start()
        made = []
        if cut is None or cut > 0:
            end = self._length if cut is None else cut
            texts = self._masks(end)
            made.append(self._stage("sparse" if texts else "train", 0.0, end, texts))
        elif pruners := self._of(*_PRUNERS):
            for item in pruners:
                self._notes.leave(item.kind, "masks move while quantizers learn; give it a stage")
        if cut is not None:
            self.quantizes = True
            texts = () if made else self._masks(self._length, only_lock=True)
            if self.pruned and not self.locks:
                texts = ("pattern-lock",)
                self.locks.append(Modifier(_LOCK, {}))
            for item in self._of(_QUANTIZER)[:1]:
                texts += (modifiers.quantization(item, cut, self._length, self._notes),)
                self.tables = modifiers.quantizes_tables(item)
            made.append(self._stage("int8", cut, self._length, texts))
        return made

    def _stage(self, kind: str, begin: float, end: float, texts: tuple[str, ...]) -> Stage:
        teacher = None
        after: tuple[str, ...] = ()
        span = (begin, end)
        text, label_weight = training.distillation(self._of(_DISTILLER), span, self._notes)
        if text:
            texts, teacher, after = (*texts, text), "./teacher", ("strip-distillation",)
        rate, schedule = rate_settings(self._of(*_RATES), begin, end, self._notes)
        decay = training.weight_decay(self._of("SetWeightDecayModifier"), begin, self._notes)
        optimizer: dict[str, Any] = {"learning_rate": rate, "weight_decay": decay}
        settings = Training(
            epochs=end - begin,
            optimizer=OptimizerSettings(**{k: v for k, v in optimizer.items() if v is not None}),
            schedule=schedule,
            label_weight=label_weight,
            freeze=training.frozen(self._of(_FREEZER), span, self._notes),
        )
        name = f"{self._name}-{kind}" if self._name else kind
        return Stage(name=name, teacher=teacher, pipeline=texts, training=settings, after=after)

    def _masks(self, end: float, *, only_lock: bool = False) -> tuple[str, ...]:
        """Return the passes that make or lock masks in the span from 0 to ``end``."""
        pruners = [] if only_lock else self._of(*_PRUNERS)
        if self.locks and pruners:
            raise RecipeError(
                "an earlier stage locks the masks, so they cannot be pruned further",
                where=f"{self._name or 'modifiers'}.{pruners[0].kind}",
            )
        texts: tuple[str, ...] = ()
        notes = self._notes
        pruners = [item for item in pruners if modifiers.has_pattern(item, notes)]
        pruners = [item for item in pruners if modifiers.begins(item, end, notes)]
        pruners, self.folds = go_on(pruners, self.pruned, notes)
        if self.folds:
            self.pruned.clear()
        for item, spared in with_spared(pruners, notes):
            texts += modifiers.pruning(item, end, notes, spared)
            self.pruned.append(item)
        return texts + self._locks(end, ramps=bool(texts))

    def _locks(self, end: float, *, ramps: bool) -> tuple[str, ...]:
        """Return the lock of a span; one lock takes all masks, so beside a ramp there is none."""
        items = self._of(_LOCK)
        if not items or not (ramps or self.locks):
            self.locks += items
            return (modifiers.lock(items, end, self._notes),) if items else ()
        for item in items:
            if bare := without_mask(item, [*self.pruned, *self.locks]):
                why = "beside a ramp" if ramps else "behind the lock of an earlier stage"
                why = f"{', '.join(bare)}: no lock can be {why}, so zeros without a mask grow back"
                self._notes.leave(item.kind, why)
            elif ramps:
                self._notes.carry(_LOCK, "magnitude-prune keeps its masks after the ramp")
            else:
                self._notes.carry(_LOCK, "the masks of the stage before are locked still")
        return ()

    def _quantization_start(self) -> float | None:
        found = self._of(_QUANTIZER)
        for item in found[1:]:
            self._notes.leave(item.kind, "a stage has one; the first is taken")
        if not found:
            return None
        start = max(0.0, float(found[0].settings.get("start_epoch", 0.0)))
        if start >= self._length:
            self._notes.leave(_QUANTIZER, f"it starts at epoch {start:g}, when training is over")
            return None
        return start

    def _leave_unknown(self) -> None:
        for item in self._modifiers:
            if item.kind not in _KNOWN:
                self._notes.leave(item.kind, modifiers.reason_for(item.kind))
            start, stop = training.span_of(item, self._length)
            outside = start >= self._length or stop <= 0
            if outside and item.kind in (_DISTILLER, _FREEZER, *_RATES):
                self._notes.leave(item.kind, "its epochs lie outside of its stage")

    def _of(self, *kinds: str) -> list[Modifier]:
        return [item for item in self._modifiers if item.kind in kinds]

    def _shifted(self, item: Modifier) -> Modifier:
        """Count epochs from the start of this stage."""
        settings = dict(item.settings)
        for key in (name for name in settings if name.endswith("_epoch")):
            value = settings[key]
            if isinstance(value, int | float) and value >= 0:
                settings[key] = value - self._begin
        return Modifier(item.kind, settings)


def _with_numbers(item: Modifier) -> Modifier:
    """Read the epochs of a modifier; null stands for none."""
    epochs = {
        key: number_of(value, f"{item.kind}.{key}")
        for key, value in item.settings.items()
        if key.endswith("_epoch") and value is not None
    }
    rest = {key: each for key, each in item.settings.items() if not key.endswith("_epoch")}
    return Modifier(item.kind, {**rest, **epochs})


def _epochs(part: SparsemlStage) -> tuple[float, float] | None:
    """Return the first and the last epoch of a stage; None where its form need not say it."""
    ranges = [item for item in part.modifiers if item.kind == "EpochRangeModifier"]
    ends = _numbers(ranges or part.modifiers, "end_epoch")
    begins = _numbers(ranges, "start_epoch")
    if not ends and not part.tagged:
        return None
    if not ends or max(ends) <= min(begins, default=0.0):
        raise RecipeError(
            "how many epochs it trains is not said",
            where=part.name or "modifiers",
            hint="add an EpochRangeModifier with end_epoch",
        )
    return min(begins, default=0.0), max(ends)


def _numbers(items: Sequence[Modifier], key: str) -> list[float]:
    values = [item.settings.get(key) for item in items]
    return [float(v) for v in values if isinstance(v, int | float) and v >= 0]
