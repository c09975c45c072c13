"""What a pass is, what it is given, and what it answers."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsefx.errors import PassError, SparsefxError, did_you_mean
from sparsefx.option_types import check_dataclass, choices, wrong_types
from sparsefx.properties import Property
from sparsefx.spec import format_spec, is_name, options_of

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = [
    "Contract",
    "OnNoMatch",
    "Pass",
    "PassContext",
    "PassReport",
    "Skip",
    "Window",
    "check_properties",
    "function_pass",
]

OnNoMatch = Literal["error", "warn", "ignore"]
_NONE: frozenset[Property] = frozenset()
_DECLARED = ("requires", "establishes", "destroys", "forbids")


@dataclass(frozen=True)
class Skip:
    """A place that a pass looked at and left alone, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class PassReport:
    """What a pass did. Whether the Program changed is not reported: the pipeline computes it.

    Attributes:
        applied: How many places were rewritten.
        skipped: Places that were considered and left alone, each with a reason.
        notes: Other facts worth telling, one sentence each.
    """

    applied: int
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        applied: object = self.applied
        if not isinstance(applied, int) or applied < 0:
            raise PassError(
                f"applied={applied!r}: expected a whole number of 0 or more",
                where="PassReport.applied",
                hint="say in how many places the pass changed something",
            )
        _check_tuple("skipped", self.skipped, Skip, "Skip(where, reason)")
        _check_tuple("notes", self.notes, str, "a sentence")


def _check_tuple(field_name: str, found: object, kind: type, example: str) -> None:
    if isinstance(found, tuple) and all(isinstance(each, kind) for each in found):
        return
    raise PassError(
        f"{field_name}={found!r}: expected a tuple of {kind.__name__}",
        where=f"PassReport.{field_name}",
        hint=f"write ({example},) for one",
    )


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the Program."""

    rewriter: Rewriter
    programs: Mapping[str, Program] = field(default_factory=dict)

    def program(self, name: str, *, who: str) -> Program:
        """Return the Program that the caller of the pipeline gave under ``name``.

        Raises:
            PassError: When there is none.
        """
        if name not in self.programs:
            raise PassError(
                f"the program {name!r} was not given",
                who=who,
                hint=f"pipeline.run(program, programs={{{name!r}: ...}}), or with sparsefx opt "
                f"--program {name}=FOLDER; " + did_you_mean(name, self.programs),
            )
        return self.programs[name]


@dataclass(frozen=True)
class Window:
    """Steps between which a pass moves masks.

    Attributes:
        begin: Step of the first update, ``t0``.
        end: First step after the ramp, ``t1``.
        every: Steps from one update to the next, ``R``.
    """

    begin: int
    end: int
    every: int


@dataclass(frozen=True)
class Contract:
    """What a pass, with its options, asks of a Program, and what it makes of it.

    Attributes:
        requires: Properties that must hold before.
        establishes: Properties that hold afterwards.
        destroys: Properties that no longer hold afterwards.
        forbids: Properties that must not hold before.
        changes_signature: Whether inputs or outputs may be others afterwards.
    """

    requires: frozenset[Property] = _NONE
    establishes: frozenset[Property] = _NONE
    destroys: frozenset[Property] = _NONE
    forbids: frozenset[Property] = _NONE
    changes_signature: bool = False

    def __post_init__(self) -> None:
        for name in _DECLARED:
            check_properties(name, getattr(self, name))


def check_properties(name: str, found: object, who: str = "") -> None:
    """Refuse what is no set of Property, by which no order could be checked.

    Raises:
        PassError: ``found``, which is called ``name``, is something else.
    """
    if not isinstance(found, (set, frozenset)):
        raise PassError(
            f"{name} is {found!r}, not a set of Property",
            who=who,
            where=name,
            hint=f"write {name} = frozenset({{Property.MASKED}})",
        )
    for each in found:
        if not isinstance(each, Property):
            near = [f"Property.{one.name}" for one in Property if each in (one.value, one.name)]
            known = ", ".join(one.name for one in Property)
            raise PassError(
                f"{name} holds {each!r}, not a Property",
                who=who,
                where=name,
                hint=f"write {near[0]}" if near else f"the properties are {known}",
            )


def _check_name(cls: type[Pass]) -> None:
    """Refuse a pass that has no name, or one that its text form could not be read by."""
    found = getattr(cls, "name", None)
    if not is_name(found):
        raise PassError(
            "it has no name" if found is None else f"its name is {found!r}, which is no name",
            who=cls.__name__,
            where="name",
            hint='write name: ClassVar[str] = "my-pass": a letter, then letters, digits, _ . or -',
        )


@dataclass(frozen=True)
class Pass(ABC):
    """A named rewrite of a Program; its fields are its options.

    A subclass is a frozen dataclass that sets ``name`` and implements :meth:`run`. It edits the
    Program in place, through the context's Rewriter alone. Options are checked in
    ``__post_init__``, where a wrong value raises :class:`PassError` with ``where`` set to the
    option's name; this class checks them against the types of the fields.

    Attributes:
        requires: Properties that must hold before; this and the next four are what
            :meth:`contract` returns.
        establishes: Properties that hold afterwards.
        destroys: Properties that no longer hold afterwards.
        forbids: Properties that must not hold before.
        changes_signature: Whether inputs or outputs may be others afterwards.
        reshapes: Whether weights may have other shapes afterwards.
        drops_heads: Whether the outputs that labels are compared with are gone afterwards.
        on_no_match: What the pipeline does when the pass applied nowhere.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Property]] = _NONE
    establishes: ClassVar[frozenset[Property]] = _NONE
    destroys: ClassVar[frozenset[Property]] = _NONE
    forbids: ClassVar[frozenset[Property]] = _NONE
    changes_signature: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False
    drops_heads: ClassVar[bool] = False

    on_no_match: OnNoMatch = field(default="warn", kw_only=True)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            _check_name(cls)
        for name in ("needs", "last_step", "takes_labels"):
            if callable(cls.__dict__.get(name)):
                raise PassError(
                    f"{cls.__name__}.{name} is a method; it has to be a property",
                    who=str(cls.__dict__.get("name", cls.__name__)),
                    where=name,
                    hint="write @property above it",
                )
        for name in _DECLARED:
            if name in cls.__dict__:
                who = str(cls.__dict__.get("name", cls.__name__))
                check_properties(name, cls.__dict__[name], who)

    def __post_init__(self) -> None:
        _check_name(type(self))  # a base of several passes has none
        check_dataclass(type(self), PassError)
        for wrong in wrong_types(type(self), options_of(self)):
            raise self.refuse(wrong.option, f"expected {wrong.expected}", hint=wrong.hint)

    def contract(self) -> Contract:
        """Return what the class declares; a pass whose contract depends on an option overrides it.

        Everything that checks an order asks here.
        """
        return Contract(
            self.requires, self.establishes, self.destroys, self.forbids, self.changes_signature
        )

    @classmethod
    def variants(cls) -> Iterator[Pass]:
        """Yield the pass with its defaults, then with one option of few values changed at a time.

        So that a message can name the option with which a pass gives a property. Yields nothing
        when an option has no default.
        """
        for options in ({}, *({option: value} for option, value in choices(cls))):
            try:
                yield cls(**options)
            except (TypeError, SparsefxError):
                continue

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the further Programs, such as ``teacher``, that the pass asks for."""
        return ()

    @property
    def last_step(self) -> int:
        """The optimizer step by which the options of the pass are reached, counted from its run."""
        return 0

    @property
    def takes_labels(self) -> bool:
        """Whether the pass adds labels to the inputs, and to the loss: a session adds none then."""
        return False

    def check_programs(self, program: Program, programs: Mapping[str, Program]) -> None:  # noqa: B027  # most passes take any
        """Refuse Programs that do not fit each other, before a run of many stages begins.

        Called with what the pass will meet, as far as its structure is known by then: weights, and
        what the passes before it add, are not there yet.

        Args:
            program: What the pass will be run on.
            programs: Those of :attr:`needs` that the recipe names.

        Raises:
            PassError: As :meth:`run` would.
        """

    def check_weights(self, program: Program) -> None:  # noqa: B027  # most passes take any
        """Refuse weights whose names or shapes do not suit, before a run of many stages begins.

        Called with the model that the run starts from, unless a pass before this one masks or
        reshapes weights.

        Raises:
            PassError: As :meth:`run` would.
        """

    @abstractmethod
    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Rewrite ``program`` in place and say what was done."""

    def after_step(self, program: Program, step: int) -> None:  # noqa: B027  # most passes do not train
        """Move masks or observers on, after optimizer step number ``step`` (1 for the first).

        Called for passes that are in ``program.active``. Parameters still have the gradients that
        the optimizer has just used: accumulated and clipped, if the loop does so. What it raises is
        told with the place of the pass and the step.
        """

    def mask_window(self, steps: int) -> Window | None:
        """Return when this pass moves masks, in steps from now; None for a pass that moves none.

        The learning-rate schedule ``rewind`` follows it.

        Args:
            steps: Steps that the Program has trained so far.
        """
        return None

    def refuse(self, option: str, why: str, *, hint: str = "") -> PassError:
        """Return the error for a wrong option; the value is put into the message."""
        value = getattr(self, option)
        return PassError(f"{option}={value!r}: {why}", who=self.name, where=option, hint=hint)

    def __str__(self) -> str:
        return format_spec(self)


def function_pass(
    name: str,
    *,
    requires: frozenset[Property] = _NONE,
    establishes: frozenset[Property] = _NONE,
    destroys: frozenset[Property] = _NONE,
    forbids: frozenset[Property] = _NONE,
    changes_signature: bool = False,
) -> Callable[[Callable[[Program, PassContext], PassReport | int]], type[Pass]]:
    """Make a pass from a function: the ten-line door.

    The function takes the Program and the context, and returns how often it applied (or a whole
    :class:`PassReport`). The contract is given as in :class:`Pass`.

    Raises:
        PassError: No name is given, or the function does not take the two.

    >>> @function_pass("count-linears")
    ... def count_linears(program, ctx):
    ...     return sum(str(node.target) == "aten.linear.default" for node in program.graph.nodes)
    >>> str(count_linears())
    'count-linears'
    """
    if not isinstance(name, str):
        hint = f'write @function_pass("{getattr(name, "__name__", "name").replace("_", "-")}")'
        raise PassError(f"its name is {name!r}, not a text", who="function_pass", hint=hint)

    def decorate(function: Callable[[Program, PassContext], PassReport | int]) -> type[Pass]:
        _check_takes_both(name, function)

        def run(self: Pass, program: Program, ctx: PassContext) -> PassReport:
            result = function(program, ctx)
            if isinstance(result, PassReport):
                return result
            if not isinstance(result, int):
                raise PassError(
                    f"the function returned {result!r}",
                    who=name,
                    hint="return how often it applied, or a PassReport",
                )
            return PassReport(applied=result)

        body: dict[str, Any] = {
            "name": name,
            "requires": requires,
            "establishes": establishes,
            "destroys": destroys,
            "forbids": forbids,
            "changes_signature": changes_signature,
            "run": run,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
        }
        return dataclasses.dataclass(frozen=True)(type(function.__name__, (Pass,), body))

    return decorate


def _check_takes_both(name: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind("program", "ctx")
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        raise PassError(
            f"{function.__name__}{inspect.signature(function)} cannot be called with a Program "
            f"and a context: {error}",
            who=name,
            where=f"{code.co_filename}:{code.co_firstlineno}" if code else "",
            hint=f"write def {function.__name__}(program, ctx)",
        ) from None
