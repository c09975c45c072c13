"""Watchers of a pipeline run: time, dumps, numerics, and a reproducer for bug reports."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sparsefx.errors import PassError
from sparsefx.instruments.compare import difference
from sparsefx.pipeline import PassEvent
from sparsefx.program import Program

__all__ = ["DumpDir", "Numerics", "Reproducer", "Timing"]


@dataclass
class Timing:
    """Measures the seconds of each pass, verification included; read ``seconds`` afterwards."""

    seconds: list[tuple[str, float]] = field(default_factory=list)
    _start: float = 0.0

    def before_pass(self, event: PassEvent) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_pass(self, event: PassEvent) -> None:
        """Stop the clock."""
        self.seconds.append((str(event.item), time.perf_counter() - self._start))


@dataclass
class DumpDir:
    """Writes the graph text before the first pass and after each, so that two can be compared."""

    folder: Path
    facts: bool = False

    @property
    def first(self) -> Path:
        """The file of the text that the first pass sees."""
        return self.folder / "00-input.txt"

    def before_pass(self, event: PassEvent) -> None:
        """Write the text that the first pass sees."""
        if event.index == 0:
            self._write(self.first, event.program)

    def after_pass(self, event: PassEvent) -> None:
        """Write the text that the pass left."""
        if event.error is None:
            name = f"{event.index + 1:02d}-{event.item.name}.txt"
            self._write(self.folder / name, event.program)

    def _write(self, path: Path, program: Program) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(program.dump(facts=self.facts), encoding="utf-8")


@dataclass
class Numerics:
    """Holds every pass to the outputs from before the first, within an absolute tolerance.

    Only for passes that keep the function; those that change it (pruning) are named in ``allow``,
    and the outputs after them are the new reference. Outputs that a pass adds or takes away are not
    compared.
    """

    batch: Mapping[str, Tensor]
    tolerance: float = 1e-5
    allow: frozenset[str] = frozenset()
    _reference: dict[str, Tensor] = field(default_factory=dict)

    def before_pass(self, event: PassEvent) -> None:
        """Take the reference outputs, before the first pass."""
        if event.index == 0:
            self._reference = self._outputs(event.program)

    def after_pass(self, event: PassEvent) -> None:
        """Compare.

        Raises:
            PassError: Naming the output and the largest difference.
        """
        if event.error is not None:
            return
        found = self._outputs(event.program)
        if event.item.name in self.allow:
            self._reference = found
            return
        for name, expected in self._reference.items():
            if name not in found:
                continue
            row = difference(name, "output", expected, found[name])
            if row.problem or not row.largest <= self.tolerance:
                how = f" by {row.largest:.3g}, allowed {self.tolerance:.3g}"
                raise PassError(
                    f"it moved the output {name!r}{f': {row.problem}' if row.problem else how}",
                    who=event.where,
                    hint="DumpDir shows the graph before and after; allow={...} if it may",
                )

    def _outputs(self, program: Program) -> dict[str, Tensor]:
        with program.evaluating():
            return program(**self.batch)


@dataclass
class Reproducer:
    """When a pass fails, writes the Program as it came in, the pass and the error.

    ``folder/program`` is the Program before the failing pass (copied before each pass, so that a
    pass that breaks the graph cannot spoil it), ``folder/failure.json`` the pass and the error.
    """

    folder: Path
    _before: Program | None = None

    def before_pass(self, event: PassEvent) -> None:
        """Keep the Program."""
        self._before = event.program.copy()

    def after_pass(self, event: PassEvent) -> None:
        """Write it if the pass failed."""
        if event.error is None or self._before is None:
            return
        self._before.save(self.folder / "program")
        found = {
            "pass": str(event.item),
            "index": event.index,
            "error": type(event.error).__name__,
            "message": str(event.error),
            "run": f'sparsefx opt program --passes "{event.item}"',
        }
        (self.folder / "failure.json").write_text(json.dumps(found, indent=1) + "\n")
