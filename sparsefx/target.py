"""Targets: what a final Program is lowered to, and what comes out."""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from sparsefx.errors import SparsefxError, TargetError
from sparsefx.extras import need
from sparsefx.graph.effects import changed_state
from sparsefx.option_types import check_dataclass, wrong_types
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.properties import Property
from sparsefx.spec import format_spec, options_of

__all__ = ["Compiled", "CostReport", "CostRow", "Target", "Unsupported", "state_refused"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unsupported:
    """A node that a target cannot take, why, and what happens to it instead."""

    where: str
    reason: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.instead})" if self.instead else "")


@dataclass(frozen=True)
class CostRow:
    """The cost of one graph node; ``figures`` maps a quantity with its unit to a number."""

    where: str
    op: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class CostReport:
    """Costs by node.

    Attributes:
        origin: How the figures came about: ``measured``, ``modelled`` or ``simulated``.
        rows: One row for each node.
        notes: What a reader must know to trust the figures (machine, assumptions).
    """

    origin: str
    rows: tuple[CostRow, ...]
    notes: tuple[str, ...] = ()

    def total(self, quantity: str) -> float:
        """Return the sum of one quantity over all rows that have it."""
        return sum(row.figures.get(quantity, 0.0) for row in self.rows)


def state_refused(program: Program, who: str) -> TargetError | None:
    """Return the error of a target that keeps every tensor as it was when it lowered a Program.

    None where calls change no tensor that an output follows.
    """
    if Property.QUANT_PREPARED in program.properties:
        why = "its observers and fake quantizers are there for training"
        return TargetError(why, who=who, where="program", hint="run quantize-convert before")
    program.infer_shapes()  # copies are told from views by their dtypes
    changed = changed_state(program.graph)
    if not changed:
        return None
    listed = ", ".join(f"{buffer.target} (by %{node.name})" for buffer, node in changed.items())
    return TargetError(
        f"each call changes what the next one reads, and it would stay as it is now: {listed}",
        who=who,
        where=str(next(iter(changed)).target),
        hint="use the target reference, or have forward take and return it",
    )


class Compiled(Protocol):
    """A lowered Program."""

    def __call__(self, **batch: Tensor) -> dict[str, Tensor]:
        """Run it; inputs and outputs as those of the Program."""

    def cost(self) -> CostReport:
        """Return what each node costs."""

    def listing(self) -> str:
        """Return what was generated, as text."""

    def save(self, path: str | Path) -> Path:
        """Write it to ``path`` and return the path."""


@dataclass(frozen=True)
class Target(ABC):
    """Somewhere a Program can run; its fields are its options, as with passes.

    ``__post_init__`` holds them to the types of the fields; a target that checks more calls it.
    """

    name: ClassVar[str]
    saves_as: ClassVar[str] = "compiled"
    """Name that a run gives to what :meth:`Compiled.save` writes: a folder, or a file."""

    extra: ClassVar[str] = ""
    """The extra of sparsefx without which it cannot run; see :mod:`sparsefx.extras`."""

    def __post_init__(self) -> None:
        check_dataclass(type(self), TargetError)
        for wrong in wrong_types(type(self), options_of(self)):
            raise self.refuse(wrong.option, f"expected {wrong.expected}", hint=wrong.hint)

    def refuse(self, option: str, why: str, *, hint: str = "") -> TargetError:
        """Return the error for a wrong option; the value is put into the message."""
        value = getattr(self, option)
        return TargetError(f"{option}={value!r}: {why}", who=self.name, where=option, hint=hint)

    def check_at_least_one(self, *options: str) -> None:
        """Raise the error for the first of some options that is less than 1."""
        for option in options:
            if getattr(self, option) < 1:
                raise self.refuse(option, "expected at least 1")

    def check_machine(self) -> None:
        """Raise what :meth:`lower` would of the options on this machine, whatever the Program.

        Asked before a training that ends in an export; a target that checks more calls it.

        Raises:
            DependencyError: The packages of :attr:`extra` are not installed.
        """
        if self.extra:
            need(self.extra, who=str(self))

    def pipeline(self) -> Pipeline:
        """Return the passes that bring a Program into the form that :meth:`lower` takes."""
        return Pipeline(())

    def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """Return all reasons why ``program`` cannot be lowered, at once; empty when it can."""
        return ()

    @abstractmethod
    def lower(self, program: Program) -> Compiled:
        """Lower a Program that went through :meth:`pipeline`."""

    def compile(self, program: Program) -> Compiled:
        """Run :meth:`pipeline` on a copy of ``program`` and lower it.

        What it takes only in another way (:attr:`Unsupported.instead`) is logged.

        Raises:
            TargetError: Listing every node that the target cannot take; or naming the step whose
                code failed, with the exception as its cause.
        """
        with self._naming("pipeline()"):
            steps = self._steps()
        ready = steps.run(program)
        with self._naming("unsupported()"):
            found = self._all_unsupported(ready)
        for reason in found:
            logger.info("%s: %s", self, reason)
        if reasons := [reason for reason in found if not reason.instead]:
            listed = "".join(f"\n  - {reason}" for reason in reasons)
            noun = "place" if len(reasons) == 1 else "places"
            raise TargetError(f"{len(reasons)} {noun} cannot be lowered:{listed}", who=self.name)
        with self._naming("lower()"):
            compiled = self.lower(ready)
        if not callable(compiled):
            raise TargetError(
                f"lower() returned {compiled!r}, which cannot be called",
                who=self.name,
                hint="return an object with __call__, cost, listing and save: see Compiled",
            )
        return compiled

    def _steps(self) -> Pipeline:
        """What :meth:`pipeline` returns, held to its type."""
        found: object = self.pipeline()
        if isinstance(found, Pipeline):
            return found
        own = type(self).pipeline
        instead = f"Pipeline.parse({found!r})" if isinstance(found, str) else "Pipeline((...))"
        raise TargetError(
            f"pipeline() returned {found!r}, not a Pipeline",
            who=self.name,
            hint=f"mend {own.__module__}.{own.__qualname__}: return {instead}",
        )

    def _all_unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """What :meth:`unsupported` returns, held to its type."""
        found: object = self.unsupported(program)
        if isinstance(found, (tuple, list)) and all(isinstance(f, Unsupported) for f in found):
            return tuple(found)
        own = type(self).unsupported
        raise TargetError(
            f"unsupported() returned {found!r}, not a tuple of Unsupported",
            who=self.name,
            hint=f"mend {own.__module__}.{own.__qualname__}: () where all can be lowered",
        )

    @contextmanager
    def _naming(self, step: str) -> Iterator[None]:
        """Turn a failure of the target's own code into an error that names target and step."""
        try:
            yield
        except (SparsefxError, MemoryError):
            raise  # of the user or the machine, and told as such
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the machine too
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise TargetError(
                f"{type(error).__name__}: {error}",
                who=self.name,
                where=step,
                hint=f"a fault of the target, raised at {frame.filename}:{frame.lineno}",
            ) from error

    def __str__(self) -> str:
        return format_spec(self)
