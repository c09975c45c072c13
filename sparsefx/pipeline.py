"""Pipeline: passes in a declared and checked order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from sparsefx import registry
from sparsefx.errors import ConvergenceError, PassError, PipelineError, SparsefxError
from sparsefx.graph.memory import no_collection
from sparsefx.hooks import contract_of, raised_at
from sparsefx.names import listed, natural
from sparsefx.passbase import Contract, Pass, PassContext, PassReport, check_properties
from sparsefx.program import HistoryEntry, Program
from sparsefx.properties import Property
from sparsefx.rewrite import Rewriter
from sparsefx.verify import Baseline, unread_parameters, verify

__all__ = ["Fixpoint", "Instrument", "PassEvent", "Pipeline"]

logger = logging.getLogger(__name__)
_REASONS = 20  # that are told why a pass applied nowhere
_FROM_TEXT = "Pipeline.parse(text) reads passes from text; a class is called to make a pass of it"
_ONE_THREAD = threading.RLock()
"""Held while a pipeline runs: the shape inference that copies share is for one thread at a time."""


@dataclass(frozen=True)
class PassEvent:
    """What an instrument sees: the pass, its place in the pipeline, and the Program.

    ``report`` and ``error`` are set after the pass; one of the two is None.
    """

    index: int
    item: Pass
    program: Program
    report: PassReport | None = None
    error: Exception | None = None

    @property
    def where(self) -> str:
        """The place of the pass, e.g. ``pass 2 'pattern-lock'``."""
        return f"pass {self.index} '{self.item}'"


class Instrument(Protocol):
    """Watches a pipeline run; shipped ones are in :mod:`sparsefx.instruments`."""

    def before_pass(self, event: PassEvent) -> None:
        """Called with the Program as the pass will see it."""

    def after_pass(self, event: PassEvent) -> None:
        """Called with the Program as the pass left it, also when it failed."""


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes; its text form is their text forms, comma-separated."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        given: object = self.passes
        if isinstance(given, Pass):
            raise _no_passes("a single one", "Pipeline((one,))")
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise _no_passes(repr(given), _FROM_TEXT)
        object.__setattr__(self, "passes", tuple(given))  # what can be read once is read once
        for item in self.passes:
            if not isinstance(item, Pass):
                raise _no_passes(repr(item), _FROM_TEXT)

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from text, e.g. ``magnitude-prune{sparsity=0.9},pattern-lock``.

        Raises:
            SpecError: With a caret under what is wrong, and a suggestion.
        """
        return cls(registry.parse_passes(text))

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.passes)

    def __add__(self, other: Pipeline | Pass) -> Pipeline:
        more = (other,) if isinstance(other, Pass) else other.passes
        return Pipeline((*self.passes, *more))

    def check(self, given: Iterable[Property] = ()) -> frozenset[Property]:
        """Check the declared order; return the properties that hold at the end.

        Raises:
            PipelineError: When a pass needs what none before it gives, or meets what it forbids.
        """
        held = frozenset(given)
        for index, item in enumerate(self.passes):
            _check_contract(index, item, held)
            held = _held_after(item, held)
        return held

    def run(
        self,
        program: Program,
        *,
        programs: Mapping[str, Program] | None = None,
        instruments: Sequence[Instrument] = (),
        in_place: bool = False,
    ) -> Program:
        """Run the passes on a copy of ``program``, verifying after each.

        Args:
            program: Stays as it is, unless ``in_place``.
            programs: Further Programs that passes ask for by name, e.g. ``teacher``.
            instruments: Watchers, called in order.
            in_place: Change ``program`` itself, for one that is not needed any more: a copy of a
                large one takes memory and time. Where a pass fails, it is left half changed.

        Returns:
            The new Program, or ``program`` where ``in_place``; its ``history`` says what each pass
            did.

        Raises:
            PipelineError: When what is given is no Program or no instrument, or the order is wrong
                (before anything runs), or a pass breaks.
            SparsefxError: What a pass raised, with its place in the pipeline.
        """
        for given in (program, *(programs or {}).values()):
            if not isinstance(given, Program):
                raise PipelineError(
                    f"expected a Program, got {type(given).__name__}",
                    who="pipeline",
                    hint="sparsefx.capture(model, example_inputs) makes one of a model",
                )
        _check_instruments(instruments)
        self.check(program.properties)
        with _ONE_THREAD:
            program.infer_shapes()  # before the copy, which shares them
            if not in_place:
                program = program.copy()
            with no_collection():
                self._run(program, programs or {}, instruments)
            _ = program.module  # compiled here, not in the first step
        return program

    def _run(
        self,
        program: Program,
        programs: Mapping[str, Program],
        instruments: Sequence[Instrument],
    ) -> None:
        idle: list[Pass] = []
        for index, item in enumerate(self.passes):
            _check_contract(index, item, program.properties, idle)
            for instrument in instruments:
                instrument.before_pass(PassEvent(index, item, program))
            report, error = None, None
            try:
                report = run_pass(item, program, programs)
            except Exception as caught:
                error = caught
            event = PassEvent(index, item, program, report, error)
            _tell(instruments, event)
            if error is not None:
                placed = _placed(error, event)
                if placed is error:
                    raise error  # as it is: 'from' would overwrite its own cause
                raise placed from error
            if report is not None and not report.applied:
                idle.append(item)


def _no_passes(given: str, hint: str) -> PipelineError:
    return PipelineError(f"expected passes, got {given}", who="pipeline", hint=hint)


def _check_instruments(instruments: object) -> None:
    several = instruments if isinstance(instruments, Sequence) else None
    for each in (instruments,) if several is None else several:
        hooks = [getattr(each, name, None) for name in ("before_pass", "after_pass")]
        if several is not None and not isinstance(each, type) and all(map(callable, hooks)):
            continue
        raise PipelineError(
            f"expected a list of instruments, got {instruments!r}",
            who="pipeline",
            where="instruments",
            hint="instruments=[Timing()]; one of your own has before_pass(event) and "
            "after_pass(event)",
        )


def _tell(instruments: Sequence[Instrument], event: PassEvent) -> None:
    """Show the event to all; a broken instrument must not hide why the pass failed."""
    for instrument in instruments:
        try:
            instrument.after_pass(event)
        except Exception:
            if event.error is None:
                raise
            logger.exception("%s failed after %s", type(instrument).__name__, event.where)


def run_pass(item: Pass, program: Program, programs: Mapping[str, Program]) -> PassReport:
    """Run one pass on ``program`` in place, verify, and write the history.

    Raises:
        PassError: From the pass, or because it applied nowhere and ``on_no_match`` is ``error``.
        VerifyError: An invariant does not hold afterwards.
    """
    before = program.fingerprint()
    baseline = Baseline.of(program)
    contract = contract_of(item)
    rewriter = Rewriter(program, item.name)
    rewriter.wired.update(baseline.wired)
    report = item.run(program, PassContext(rewriter, programs))
    if not isinstance(report, PassReport):
        raise PassError(
            f"run() returned {report!r}, not a PassReport",
            who=item.name,
            hint="return PassReport(how often it applied)",
        )
    check_properties("program.properties", program.properties, item.name)
    rewriter.finish()
    if report.applied:
        program.properties = (program.properties - contract.destroys) | contract.establishes
    signature = None if contract.changes_signature else baseline.signature
    verified = replace(baseline, wired=rewriter.wired)
    verify(program, signature=signature, before=verified, who=item.name)
    after = program.fingerprint()
    if not report.applied and not _only_marked(program, baseline.properties, before):
        _no_match(item, report, changed=before != after)
    notes = (*report.notes, *_left_unread(item, unread_parameters(program) - baseline.unread))
    entry = HistoryEntry(str(item), report.applied, report.skipped, notes, before != after, after)
    program.history = (*program.history, entry)
    return report


def _only_marked(program: Program, held: frozenset[Property], fingerprint: str) -> bool:
    """Whether a pass found nothing to change, and says by a property that this is so."""
    found, program.properties = program.properties, held
    try:
        return found != held and program.fingerprint() == fingerprint
    finally:
        program.properties = found


def _left_unread(item: Pass, names: Iterable[str]) -> tuple[str, ...]:
    """Tell of parameters that nothing takes since the pass: they are trained and saved in vain."""
    if not (unread := sorted(names, key=natural)):
        return ()
    told = f"it left parameters that nothing reads: {listed(unread)}"
    logger.warning("%s: %s; ctx.rewriter.erase_unused takes them out", item, told)
    return (told,)


def _no_match(item: Pass, report: PassReport, *, changed: bool) -> None:
    reasons = "".join(f"\n  - {skip}" for skip in report.skipped[:_REASONS])
    if len(report.skipped) > _REASONS:
        reasons += f"\n  and {len(report.skipped) - _REASONS} more"
    why = "it applied nowhere" + (f":{reasons}" if reasons else " and found nothing to consider")
    if changed:
        why = "it changed the Program and says that it applied nowhere: return how often it did"
    if item.on_no_match == "error":
        raise PassError(why, who=item.name, hint="on_no_match='warn' lets the pipeline go on")
    if item.on_no_match == "warn":
        logger.warning("%s: %s", item, why)


def _placed(error: Exception, event: PassEvent) -> Exception:
    """Return the error with the pass's place in the pipeline."""
    if not isinstance(error, SparsefxError):
        return PipelineError(
            f"{type(error).__name__}: {error}",
            who=event.where,
            hint=f"raised at {raised_at(error, event.item)}; the Reproducer instrument writes "
            "pipeline and program for a bug report",
        )
    own = error.who in ("", event.item.name)
    error.who = event.where if own else f"{event.where}: {error.who}"
    return error


def _check_contract(
    index: int, item: Pass, held: frozenset[Property], idle: Sequence[Pass] = ()
) -> None:
    """Refuse a pass where it cannot run.

    Args:
        index: Its place.
        item: The pass.
        held: What holds there.
        idle: Passes before it that applied nowhere.
    """
    contract = contract_of(item, f"pass {index}")
    if missing := contract.requires - held:
        raise PipelineError(
            f"it requires {_listed(missing)}, which does not hold here",
            who=f"pass {index} '{item}'",
            hint=_how_to_get(missing, idle),
        )
    if unwanted := contract.forbids & held:
        enders = registry.passes_that(lambda other: other.destroys & unwanted)
        earlier = "move it earlier"
        raise PipelineError(
            f"it cannot run where {_listed(unwanted)} holds",
            who=f"pass {index} '{item}'",
            hint=f"run {' or '.join(enders)} before it, or {earlier}" if enders else earlier,
        )


def _how_to_get(missing: frozenset[Property], idle: Sequence[Pass]) -> str:
    if ran := [f"'{item}'" for item in idle if contract_of(item).establishes & missing]:
        return f"{' and '.join(ran)} ran before, but applied nowhere: its warning says why"
    givers = registry.passes_that(lambda other: other.establishes & missing)
    return f"run {' or '.join(givers)} before it" if givers else "no pass gives this"


def _listed(properties: frozenset[Property]) -> str:
    return ", ".join(sorted(str(item) for item in properties))


def _held_after(item: Pass, held: frozenset[Property]) -> frozenset[Property]:
    """Return what holds after a pass that applied, from what held before."""
    if isinstance(item, Fixpoint):
        for each in item.items:
            held = _held_after(each, held)
        return held
    contract = contract_of(item)
    return (held - contract.destroys) | contract.establishes


@dataclass(frozen=True)
class Fixpoint(Pass):
    """Runs passes again and again until a round changes nothing.

    Requires, establishes and forbids what its passes do, in their order. Raises ConvergenceError
    when ``max_rounds`` rounds all changed something; nothing is silently left half done. That a
    pass applies nowhere in the last round is the aim: of ``on_no_match`` only its own counts.

    >>> str(Fixpoint(passes="fold-masks", max_rounds=4))
    "fixpoint{passes='fold-masks',max_rounds=4}"
    """

    name: ClassVar[str] = "fixpoint"

    passes: str = field(default="")
    max_rounds: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rounds < 1:
            raise self.refuse("max_rounds", "expected at least 1")
        if not self.items:  # a wrong name is found before anything runs
            raise self.refuse("passes", "expected at least one pass, e.g. passes='simplify'")
        Pipeline(self.items).check(self.contract().requires)

    def contract(self) -> Contract:
        """What its passes require and forbid, in their order; they state the rest themselves."""
        requires = held = ended = forbids = frozenset[Property]()
        contracts = [contract_of(item, f"pass {at}") for at, item in enumerate(self.items)]
        for item, each in zip(self.items, contracts, strict=True):
            requires |= each.requires - held
            forbids |= each.forbids - ended
            held = _held_after(item, held)
            ended = (ended | each.destroys) - each.establishes
        changes = any(each.changes_signature for each in contracts)
        return Contract(requires=requires, forbids=forbids, changes_signature=changes)

    @property
    def items(self) -> tuple[Pass, ...]:
        """The passes of a round."""
        return registry.parse_passes(self.passes)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Run the rounds."""
        items = [replace(item, on_no_match="ignore") for item in self.items]
        applied = 0
        for round_number in range(1, self.max_rounds + 1):
            before = program.fingerprint()
            held = len(program.history)
            reports = [run_pass(item, program, ctx.programs) for item in items]
            program.history = program.history[:held]
            applied += sum(report.applied for report in reports)
            if program.fingerprint() == before:
                skipped = tuple(skip for report in reports for skip in report.skipped)
                return PassReport(applied, skipped, (f"settled after {round_number} rounds",))
        raise ConvergenceError(
            f"still changing after {self.max_rounds} rounds of {self.passes}",
            who=self.name,
            hint="two of its passes undo each other, or max_rounds is too small",
        )
