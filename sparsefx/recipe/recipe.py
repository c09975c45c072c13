"""Recipes: the file form of a run, from a dense model to the final Program.

A recipe is YAML (or the same built in Python): a name, data settings, and stages. Each stage runs
passes, trains, and runs passes again; docs/recipes.md has all keys. What is wrong in a recipe is
found before anything runs, and named by its path, e.g. ``stages[1].training.learning_rate``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sparsefx.errors import RecipeError, did_you_mean
from sparsefx.pipeline import Pipeline
from sparsefx.properties import Property
from sparsefx.recipe.amounts import NOMINAL_STEPS, check_amount, check_interval
from sparsefx.recipe.passes import check_labels, check_passes, is_path, unknown_stage
from sparsefx.recipe.text import FlowStyleDumper, explain, read_yaml

__all__ = [
    "MODEL",
    "DataSettings",
    "OptimizerSettings",
    "Recipe",
    "ScheduleSettings",
    "Stage",
    "Training",
]

MODEL = "model"
"""As ``start`` of a stage: the model as it was given to the session."""


def _is_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return value


def _as_list(value: Any) -> Any:
    if isinstance(value, Pipeline):
        return tuple(str(item) for item in value.passes)
    return (value,) if isinstance(value, str) else value


Amount = Annotated[int | str, AfterValidator(check_amount)]
"""A number of steps, or a share of the stage's steps such as ``10%``."""
Interval = Annotated[int | str, AfterValidator(check_interval)]
"""The same, of at least one step."""
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Regex = Annotated[str, AfterValidator(_is_pattern)]
Passes = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""Passes in text form: one text, or a list of texts that are joined by commas."""


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_truth_values(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads ``yes`` and ``on`` as true, which Python takes for 1."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        given = value if isinstance(value, list) else [value]
        if wanted is not bool and any(isinstance(each, bool) for each in given):
            raise ValueError("a truth value does not fit; YAML takes yes, no, on and off for one")
        return value


class DataSettings(_Settings):
    """How texts become batches."""

    max_length: int = Field(default=128, ge=2)
    """Longest sequence in tokens, special tokens included; what is longer is cut."""
    batch_size: int = Field(default=32, ge=1)
    """Examples in a training batch, unless a stage says otherwise."""
    eval_batch_size: int = Field(default=64, ge=1)
    """Examples in an evaluation batch."""


class ScheduleSettings(_Settings):
    """How the learning rate moves; see :mod:`sparsefx.train.schedules`."""

    kind: Literal["constant", "linear", "cosine", "rewind"] = "linear"
    """``rewind`` starts over at each choice of masks, then falls linearly to zero."""
    warmup: Amount = "10%"
    """Steps of linear rise from zero."""
    begin: Amount | None = None
    """Of ``rewind``: first step of the window; default: where the pruning pass begins."""
    end: Amount | None = None
    """Of ``rewind``: first step after the window; default: where the ramp of the pass ends."""
    every: Amount | None = None
    """Of ``rewind``: steps from one rewind to the next; default: the frequency of the pass."""

    @model_validator(mode="after")
    def _window_only_for_rewind(self) -> ScheduleSettings:
        given = [name for name in ("begin", "end", "every") if getattr(self, name) is not None]
        if given and self.kind != "rewind":
            raise ValueError(f"{', '.join(given)}: only the kind 'rewind' has a window")
        return self


class OptimizerSettings(_Settings):
    """AdamW (fused); weight decay spares vectors (biases, norms) and the scores of masks."""

    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices, but of scores of masks."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the two moments."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class Training(_Settings):
    """How a stage trains."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; a fraction is allowed. Either this or ``steps``."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Either this or ``epochs``."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer and peak learning rate."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Course of the learning rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Examples in a batch, of all processes together; default: ``data.batch_size``."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which each process computes its share of a batch, one after the other: less memory
    for the same step."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of all gradients together; null for no clipping."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """``bf16``: autocast; parameters and optimizer stay fp32."""
    freeze: tuple[Regex, ...] = ()
    """Parameters whose name contains one of these regular expressions are not trained."""
    data: Literal["labelled", "labelled+unlabelled", "unlabelled"] = "labelled"
    """What is trained on: the training split, unlabelled texts too if the run has any (for
    distillation), or those alone. In a run on text alone ``labelled`` is its text."""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss against the labels; terms that passes put into the graph come on top.
    Where a pass puts its own such loss in, as ``distill{labels=1}`` does, there is no other."""
    evaluate_every: Interval | None = None
    """Evaluate while training, each time so many steps are done; null: never."""

    @model_validator(mode="after")
    def _one_duration(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def steps_on(self, examples: int, batch_size: int) -> int:
        """Return the optimizer steps on so many examples.

        Args:
            examples: What is trained on.
            batch_size: Of a batch, where the stage has none of its own.
        """
        per_epoch = -(-examples // (self.batch_size or batch_size))
        return self.steps or max(1, round((self.epochs or 0) * per_epoch))


class Stage(_Settings):
    """One stage: passes, training, passes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Unique; names the stage's folder."""
    description: str = ""
    """For readers."""
    start: str | None = None
    """An earlier stage, ``model``, or a folder that holds a saved Program or a Hugging Face model;
    of the latter the encoder is taken. Default: the stage before."""
    teacher: str | None = None
    """What passes get as the program ``teacher``: an earlier stage, ``model``, or a folder that
    holds a saved Program or a Hugging Face model."""
    pipeline: Passes = ()
    """Passes that run before training. An option value such as ``65%`` is a share of the steps."""
    training: Training | None = None
    """How to train; without it the stage only runs passes."""
    after: Passes = ()
    """Passes that run after training."""
    evaluate: bool = True
    """Whether the result is scored."""


class Recipe(_Settings):
    """A run: data settings and stages.

    >>> dense = Stage(name="dense", training=Training(epochs=3))
    >>> recipe = Recipe(name="fine-tune", stages=(dense,))
    >>> print(recipe.to_yaml(), end="")
    name: fine-tune
    stages:
    - name: dense
      training:
        epochs: 3.0
    >>> Recipe.parse(recipe.to_yaml()) == recipe
    True
    """

    name: str = Field(min_length=1)
    """Names the run."""
    description: str = ""
    """One paragraph: what it does and for whom."""
    source: str = ""
    """Where the method and its numbers come from."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random: order of the data, dropout, a new head."""
    data: DataSettings = DataSettings()
    """How texts become batches."""
    stages: tuple[Stage, ...]
    """In order; at least one."""

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not stages:
            raise ValueError("a recipe needs at least one stage")
        return stages

    @classmethod
    def load(cls, place: str | Path) -> Recipe:
        """Read and check a recipe: a YAML file, or the name of a shipped one.

        Raises:
            RecipeError: With ``where`` set to the path of the wrong key.
        """
        path = Path(place)
        if path.suffix not in (".yaml", ".yml"):
            return cls.shipped(str(place))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"not YAML: {error}"
            raise RecipeError(
                f"the recipe cannot be read: {reason}",
                who=str(path),
                hint=f"shipped recipes: {', '.join(cls.names())}",
            ) from error
        recipe = cls.parse(text, who=str(path))
        recipe.check(who=str(path))
        return recipe

    @classmethod
    def parse(cls, text: str, *, who: str = "recipe") -> Recipe:
        """Read a recipe from YAML; its passes are looked at by :meth:`check`.

        Raises:
            RecipeError: It is not YAML, a key is unknown or missing, or a value is out of range.
        """
        raw = read_yaml(text, who)
        try:
            recipe: Recipe = cls.model_validate(raw)
        except ValidationError as error:
            raise explain(error, cls, who) from error
        return recipe

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the shipped recipes."""
        folder = resources.files("sparsefx.recipe.shipped")
        files = (Path(item.name) for item in folder.iterdir())
        return sorted(path.stem for path in files if path.suffix == ".yaml")

    @classmethod
    def shipped(cls, name: str) -> Recipe:
        """Return a recipe that comes with sparsefx.

        Raises:
            RecipeError: There is none of this name.
        """
        if name not in cls.names():
            raise RecipeError(
                f"there is no recipe {name!r}",
                who="recipe",
                hint=did_you_mean(name, cls.names()) + "; the name of a file ends in .yaml",
            )
        text = (resources.files("sparsefx.recipe.shipped") / f"{name}.yaml").read_text(
            encoding="utf-8"
        )
        recipe = cls.parse(text, who=name)
        recipe.check(who=name)
        return recipe

    def to_yaml(self) -> str:
        """Return the recipe as YAML that :meth:`parse` reads back to an equal one."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        text: str = yaml.dump(
            plain, Dumper=FlowStyleDumper, sort_keys=False, allow_unicode=True, width=100
        )
        return text

    def fingerprint(self) -> str:
        """Return a hash of everything that influences the result (names and texts do not)."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain data, without what is there for readers alone.

        In how many parts a batch is computed is left out, like the number of processes: a run may
        go on with another.
        """
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"description", "source"})
        for stage in plain["stages"]:
            del stage["description"]
            (stage["training"] or {}).pop("accumulate", None)
        return plain

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema, which editors use to complete and check recipe files."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(mode="validation"),
        }

    # -- checks ----------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        """Return a stage by name.

        Raises:
            RecipeError: There is none of this name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise RecipeError(
            f"there is no stage {name!r}", who=self.name, hint=did_you_mean(name, names)
        )

    def start_of(self, index: int) -> str:
        """Return where stage ``index`` starts from: a stage by name, ``model`` or a folder."""
        previous = self.stages[index - 1].name if index else MODEL
        return self.stages[index].start or previous

    def check(
        self,
        given: Iterable[Property] = (),
        *,
        who: str = "recipe",
        steps: Mapping[str, int | None] | None = None,
    ) -> None:
        """Check stage names and references, and the passes of all stages in their order.

        Args:
            given: Properties of the model that the run will start from.
            who: Whom errors name.
            steps: Optimizer steps of each stage by name, when the data are known.

        Raises:
            RecipeError: With ``where`` set to the path of the wrong key.
        """
        held: dict[str, frozenset[Property]] = {MODEL: frozenset(given)}
        for index, stage in enumerate(self.stages):
            path = f"stages[{index}]"
            if stage.name in held:
                raise RecipeError(
                    f"the name {stage.name!r} is taken", who=who, where=f"{path}.name"
                )
            start = self.start_of(index)
            if start not in held and not is_path(start):
                raise unknown_stage(start, held, who, f"{path}.start")
            if stage.teacher and stage.teacher not in held and not is_path(stage.teacher):
                raise unknown_stage(stage.teacher, held, who, f"{path}.teacher")
            nominal = NOMINAL_STEPS if stage.training else None
            known = nominal if steps is None else steps[stage.name]
            begun = held.get(start, frozenset())
            passes = {f"{path}.pipeline": stage.pipeline, f"{path}.after": stage.after}
            held[stage.name] = check_passes(passes, begun, known, who, taught=bool(stage.teacher))
            if stage.training and "label_weight" in stage.training.model_fields_set:
                where = f"{path}.training.label_weight"
                check_labels(stage.pipeline, known, stage.training.label_weight, who, where)
