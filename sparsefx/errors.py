"""Every error that a user of sparsefx can meet.

An error says *who* raised it (``who``: a pass, a target, a file reader), *where* (``where``: a
node, a tensor, a line), *why* (the message) and *what to do* (``hint``). The four parts stay
attributes, so that tools can read them, and every error survives pickling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sparsefx.names import natural

__all__ = [
    "ArtifactError",
    "CaptureError",
    "ConvergenceError",
    "DataError",
    "DependencyError",
    "PassError",
    "PipelineError",
    "ProgramError",
    "RecipeError",
    "RegistryError",
    "SparsefxError",
    "SpecError",
    "TargetError",
    "TrainingError",
    "TrainingInterruptedError",
    "UnrepresentableError",
    "VerifyError",
    "closest",
    "did_you_mean",
    "first_line",
    "misnamed_inputs",
    "unnamed_inputs",
]


class SparsefxError(Exception):
    """Base of all errors that are the user's to mend.

    Args:
        why: What is wrong, with the offending value in it.
        who: The pass, target or reader that found it.
        where: The node, tensor, file and line, or recipe path at fault.
        hint: What to do next.
    """

    def __init__(self, why: str, *, who: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.who = who
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.told}\n  hint: {self.hint}" if self.hint else self.told

    @property
    def told(self) -> str:
        """All but the hint: why, with who and where in front."""
        place = " at ".join(part for part in (self.who, self.where) if part)
        return f"{place}: {self.why}" if place else self.why

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(
    cls: type[SparsefxError], args: tuple[object, ...], state: dict[str, object]
) -> SparsefxError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class CaptureError(SparsefxError):
    """A model cannot be captured as a graph."""


class ProgramError(SparsefxError):
    """A Program was called or changed in a way that its signature or graph does not allow."""


class PassError(SparsefxError):
    """A pass cannot do its work on this Program, or its options are out of range."""


class ConvergenceError(PassError):
    """A fixpoint was not reached within the allowed number of rounds."""


class PipelineError(SparsefxError):
    """A pipeline is ordered wrongly, or one of its passes failed."""


class RegistryError(SparsefxError):
    """No pass, target or recipe has this name."""


class RecipeError(SparsefxError):
    """A recipe file is malformed; ``where`` is the path of the key."""


class TargetError(SparsefxError):
    """A target cannot lower this Program."""


class DependencyError(SparsefxError):
    """An optional package is not installed."""


class ArtifactError(SparsefxError):
    """A saved file is missing, cut, altered, or of another version."""


class UnrepresentableError(ArtifactError):
    """A form has no place for what a Program holds; no other try can write it."""


class DataError(SparsefxError):
    """A data file or data set cannot be used as asked."""


class TrainingError(SparsefxError):
    """Training cannot go on; the last checkpoint is kept."""


class TrainingInterruptedError(TrainingError):
    """It was asked to stop, and did when what was done was saved; the same run can go on later."""


class SpecError(SparsefxError):
    """A pass or target in text form cannot be read.

    Args:
        why: What is wrong.
        text: The whole text.
        position: Index into ``text`` of the first offending character.
        hint: What to do next.
    """

    def __init__(self, why: str, *, text: str, position: int, hint: str = "") -> None:
        super().__init__(why, hint=hint)
        self.text = text
        self.position = position

    @property
    def told(self) -> str:
        """All but the hint: why, and the text with a caret below the character."""
        return f"{super().told}\n  {self.text}\n  {' ' * self.position}^"


class VerifyError(SparsefxError):
    """One or more invariants do not hold; ``violations`` lists all of them."""

    def __init__(self, violations: Sequence[str], *, who: str = "", where: str = "") -> None:
        self.violations = tuple(violations)
        count = len(self.violations)
        listed = "".join(f"\n  - {violation}" for violation in self.violations)
        plural = "invariant does" if count == 1 else "invariants do"
        super().__init__(f"{count} {plural} not hold:{listed}", who=who, where=where)


def unnamed_inputs(names: Iterable[str], *, call: str) -> ProgramError:
    """Return the error for inputs that were given by their position.

    Args:
        names: Of the inputs.
        call: What was called, as one would write it: ``program``.

    >>> print(unnamed_inputs(["ids", "mask"], call="program"))
    program: inputs are given by name
      hint: program(ids=..., mask=...); a dict of inputs is given as program(**batch)
    """
    listed = ", ".join(f"{name}=..." for name in names)
    hint = f"{call}({listed}); a dict of inputs is given as {call}(**batch)"
    return ProgramError("inputs are given by name", who=call, hint=hint)


def misnamed_inputs(names: Sequence[str], given: Iterable[str], *, who: str) -> ProgramError | None:
    """Return the error for an input that is missing, or that a model does not take, if one is.

    Args:
        names: What the model takes.
        given: Names of what it was called with.
        who: Who calls it.

    >>> print(misnamed_inputs(["ids", "mask"], ["ids", "masks"], who="program"))
    program at masks: there is no input 'masks'; it takes ids, mask
      hint: did you mean 'mask'?
    """
    given = tuple(given)
    takes = f"it takes {', '.join(names)}"
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names)
            return ProgramError(
                f"there is no input {name!r}; {takes}", who=who, where=name, hint=hint
            )
    for name in names:
        if name not in given:
            hint = "pass every input that the model was captured with"
            return ProgramError(
                f"the input {name!r} is missing; {takes}", who=who, where=name, hint=hint
            )
    return None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of ``known``, or lists them all when none is close.

    >>> did_you_mean("magnitude-prun", ["magnitude-prune", "distill"])
    "did you mean 'magnitude-prune'?"
    """
    names = sorted(known, key=natural)
    listed = f"known: {', '.join(names)}" if names else "none is known here"
    return closest(given, names) or listed


def closest(given: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of ``known``, or nothing when none is close."""
    close = difflib.get_close_matches(given, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text that says something, else the error's class.

    >>> first_line(ValueError("\n  too long\nTraceback")), first_line(KeyError())
    ('too long', 'KeyError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
