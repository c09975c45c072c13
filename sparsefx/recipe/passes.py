"""The checks of what a recipe's stages name: their passes, and each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparsefx.errors import PassError, PipelineError, RecipeError, SpecError, did_you_mean
from sparsefx.hooks import calling
from sparsefx.passbase import Pass
from sparsefx.pipeline import Pipeline
from sparsefx.properties import Property
from sparsefx.recipe.amounts import Shares, parse_pipeline

__all__ = [
    "TEACHER",
    "asks_teacher",
    "check_labels",
    "check_passes",
    "is_path",
    "names_teacher_inputs",
    "unknown_stage",
]

TEACHER = "teacher"  # how a stage names its teacher to its passes


def check_passes(
    passes: Mapping[str, Sequence[str]],
    held: frozenset[Property],
    steps: int | None,
    who: str,
    *,
    taught: bool,
) -> frozenset[Property]:
    """Check the passes of a stage in their order; return what holds behind them.

    Args:
        passes: Those before and after its training, in text form, by their path in the recipe.
        held: What holds before it.
        steps: Its optimizer steps, of which shares are taken; None where it does not train.
        who: Whom errors name.
        taught: Whether it names a teacher.

    Raises:
        RecipeError: A pass or an option is unknown, the order is wrong, or a teacher is missing.
    """
    given = {TEACHER} if taught else set()
    for where, texts in passes.items():
        try:
            pipeline = parse_pipeline(texts, steps)
            held = pipeline.check(held)
            lacking = _lacking(pipeline, given)
        except (SpecError, PipelineError, RecipeError, PassError) as error:
            why = error.told
            if isinstance(error, PipelineError):
                why = Shares.of(texts, steps).restore(why)
            raise RecipeError(why, who=who, where=where, hint=error.hint) from error
        if lacking:
            raise RecipeError(
                f"{lacking[0]!r} needs a teacher, and the stage names none",
                who=who,
                where=where,
                hint="add e.g. 'teacher: dense', the name of an earlier stage",
            )
    return held


def _lacking(pipeline: Pipeline, given: set[str]) -> list[str]:
    """Return the names of passes that need more than is given."""
    found = []
    for index, item in enumerate(pipeline.passes):
        with calling(item, "needs", f"pass {index}"):
            needs: object = item.needs
            if not isinstance(needs, tuple):
                why = f"it is {needs!r}, not a tuple of names"
                raise PassError(why, hint=f"return names of Programs, e.g. ({TEACHER!r},)")
        if set(item.needs) - given:
            found.append(item.name)
    return found


def check_labels(
    texts: Sequence[str], steps: int | None, weight: float, who: str, where: str
) -> None:
    """Refuse a ``label_weight`` that a stage gives beside a pass with its own loss of the labels.

    Args:
        texts: Its passes, checked already.
        steps: Its optimizer steps.
        weight: As the stage gives it.
        who: Whom errors name.
        where: Path of the weight in the recipe.

    Raises:
        RecipeError: It would have no effect.
    """
    own = [item.name for item in parse_pipeline(texts, steps).passes if item.takes_labels]
    if weight and own:
        raise RecipeError(
            f"{weight:g} has no effect: {own[0]!r} puts a loss against the labels in, and it is "
            "the only one",
            who=who,
            where=where,
            hint=f"take label_weight out: the weight of the labels is an option of {own[0]!r}; or "
            "take the labels out of the pass, where some examples have none",
        )


def names_teacher_inputs(texts: Sequence[str], steps: int | None) -> bool:
    """Whether one of these passes, checked already, adds inputs that its teacher alone reads."""
    passes = parse_pipeline(texts, steps).passes
    return any(getattr(item, "teacher_inputs", ()) for item in passes)


def asks_teacher(passes: Iterable[Pass]) -> bool:
    """Return whether one of the passes needs the teacher of its stage."""
    return any(TEACHER in item.needs for item in passes)


def is_path(text: str) -> bool:
    """Whether a start or a teacher is written as a folder, and not as the name of a stage."""
    return "/" in text or "\\" in text or text.startswith((".", "~"))


def unknown_stage(
    name: str, held: Mapping[str, frozenset[Property]], who: str, where: str
) -> RecipeError:
    """Return the error for a name that is no earlier stage."""
    return RecipeError(
        f"{name!r} is neither an earlier stage nor 'model'",
        who=who,
        where=where,
        hint=did_you_mean(name, held) + "; a folder is written with a slash, e.g. ./folder",
    )
