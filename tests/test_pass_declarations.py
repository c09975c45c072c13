"""What a pass says of itself is held to its type, and the error names the pass."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sparsefx import Pass, PassReport, Pipeline, Program, Property, Skip, function_pass
from sparsefx.backends.reference.target import Reference
from sparsefx.errors import PassError, PipelineError, SparsefxError, TargetError
from sparsefx.passbase import Contract, PassContext
from sparsefx.passes.prune.lock import PatternLock
from sparsefx.pipeline import Fixpoint
from sparsefx.target import Target
from sparsefx.train import schedules
from tests.toy_passes import NeedsLock, Scale, relu_program

SKIP = Skip("here", "because")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((-1,), "applied=-1: expected a whole number of 0 or more"),
        ((1.5,), r"applied=1\.5: expected a whole number"),
        (("a",), "applied='a': expected a whole number"),
        ((1, ("str",)), r"skipped=\('str',\): expected a tuple of Skip"),
        ((1, [SKIP]), "expected a tuple of Skip"),
        ((1, (), "note"), "notes='note': expected a tuple of str"),
    ],
)
def test_a_report_is_checked_and_the_pass_named(given: tuple[Any, ...], why: str) -> None:
    @dataclass(frozen=True)
    class Reports(Pass):
        name: ClassVar[str] = "reports"

        def run(self, program: Program, ctx: PassContext) -> PassReport:
            return PassReport(*given)

    with pytest.raises(PassError, match=why) as caught:
        Pipeline((Reports(),)).run(relu_program())
    assert caught.value.who == "pass 0 'reports'"
    assert caught.value.where.startswith("PassReport.")
    assert PassReport(1, (SKIP,), ("note",)).skipped == (SKIP,)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (frozenset({"masked"}), r"establishes holds 'masked', not a Prop(.|\n)*Property\.MASKED"),
        (frozenset({"other"}), r"holds 'other', not a Property(.|\n)*the properties are MASKED"),
        ([Property.MASKED], r"establishes is \[.*\], not a set of Property"),
        ("masked", "establishes is 'masked', not a set of Property"),
    ],
)
def test_properties_are_checked_where_they_are_declared(given: Any, why: str) -> None:
    with pytest.raises(PassError, match=f"declares(.|\n)*{why}"):
        function_pass("declares", establishes=given)(lambda program, ctx: 1)
    with pytest.raises(PassError, match=why):
        Contract(establishes=given)


def raises(self: Pass) -> Contract:
    raise ValueError("inside")


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        (raises, "ValueError: inside"),
        (lambda self: None, "it returned None, not a Contract"),
        (lambda self: Contract(requires=[]), r"requires is \[\], not a set"),  # type: ignore[arg-type]  # wrong
    ],
)
def test_what_a_contract_does_wrong_names_the_pass(contract: Any, why: str) -> None:
    odd = type("Odd", (NeedsLock,), {"name": "odd", "contract": contract})()
    for pipeline in (Pipeline((odd,)), Pipeline((Scale(), odd))):
        with pytest.raises(PassError, match=why) as caught:
            pipeline.check()
        assert caught.value.who == f"pass {len(pipeline.passes) - 1} 'odd'"


def test_a_fixpoint_names_the_pass_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = type("Odd", (NeedsLock,), {"name": "odd", "contract": raises})()
    monkeypatch.setattr("sparsefx.registry.parse_passes", lambda text: (odd,))
    with pytest.raises(PassError, match="pass 0 'odd' at contract: ValueError: inside"):
        Fixpoint(passes="odd")


def test_a_broken_pass_hides_no_hint_of_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = type("Odd", (NeedsLock,), {"name": "odd", "contract": raises})
    monkeypatch.setattr("sparsefx.registry.names", lambda kind: ("odd", "pattern-lock"))
    known = {"odd": odd, "pattern-lock": PatternLock}
    monkeypatch.setattr("sparsefx.registry.pass_class", known.__getitem__)
    with pytest.raises(PipelineError, match="run 'pattern-lock' before it"):
        Pipeline((NeedsLock(),)).check()
    assert "ValueError: inside" in caplog.text


@dataclass(frozen=True)
class Misspelt(Pass):
    """Goes into program.active without a method that is called there."""

    name: ClassVar[str] = "misspelt"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        program.active = (*program.active, self)
        return PassReport(1)

    def after_steps(self, program: Program, step: int) -> None:
        """Never called."""


def test_an_active_pass_without_a_hook_is_refused() -> None:
    with pytest.raises(PassError, match="rename after_steps to after_step") as caught:
        Pipeline((Misspelt(),)).run(relu_program())
    assert caught.value.who == "pass 0 'misspelt'"
    assert "'misspelt' would do nothing" in caught.value.why
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    program = relu_program()
    with pytest.raises(PassError, match=r"'scale' would do nothing(.|\n)*give it after_step\("):
        program.active = (Scale(),)


@pytest.mark.parametrize("given", [NeedsLock, "pattern-lock", None])
def test_an_active_pass_is_a_pass(given: Any) -> None:
    program = relu_program()
    with pytest.raises(PassError, match=r"program\.active\[0\]: .* is no pass"):
        program.active = (given,)
    assert program.active == ()


def test_a_window_is_one() -> None:
    odd = type("Odd", (NeedsLock,), {"name": "odd", "mask_window": lambda self, steps: (0, 9)})()
    with pytest.raises(PassError, match=r"pass 0 'odd' at mask_window(.|\n)*not a Window"):
        schedules.window_of((odd,))


def test_a_function_has_a_name_and_takes_a_program_and_a_context() -> None:
    def my_pass(program: Program) -> int:
        return 0

    make: Any = function_pass
    with pytest.raises(PassError, match=r'hint: write @function_pass\("my-pass"\)'):
        make(my_pass)
    told = r"mine at .*test_pass_declarations\.py:\d+: my_pass\(program.*too many positional(.|\n)*"
    with pytest.raises(PassError, match=told + r"write def my_pass\(program, ctx\)"):
        make("mine")(my_pass)
    make("mine")(lambda program, ctx, more=1: 0)


@dataclass(frozen=True)
class Idle(Pass):
    """Does nothing."""

    name: ClassVar[str] = "idle"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        return PassReport(0)


class Undecorated(Idle):
    """Has an option, and is no dataclass."""

    name: ClassVar[str] = "undecorated"
    threshold: float = 0.5


class UndecoratedTarget(Reference):
    """Likewise."""

    name: ClassVar[str] = "undecorated-target"
    bits: int = 8


class Common:
    """What several passes would have, and is no dataclass."""

    share: float = 0.5


@dataclass(frozen=True)
class OnCommon(Common, Idle):
    """Does not get the option of its base."""

    name: ClassVar[str] = "on-common"
    threshold: float = 0.5


class Stricter(Reference):
    """Means to give an option another default."""

    name: ClassVar[str] = "stricter"
    check: bool = False


@dataclass(frozen=True)
class OnStricter(Stricter):
    """Does not get that default."""

    name: ClassVar[str] = "on-stricter"


@dataclass(frozen=True)
class Again(Common, Idle):
    """Has the option of its base by its own annotation."""

    name: ClassVar[str] = "again"
    share: float = 0.25


@pytest.mark.parametrize(
    ("made", "expected", "why"),
    [
        (Undecorated, PassError, "it is no dataclass: its options threshold would be lost"),
        (UndecoratedTarget, TargetError, "it is no dataclass: its options bits would be lost"),
        (OnCommon, PassError, "its base Common is no dataclass: its options share would be lost"),
        (OnStricter, TargetError, "its base Stricter is no dataclass: its options check would"),
    ],
)
def test_options_are_not_lost(
    made: type[Pass | Target], expected: type[SparsefxError], why: str
) -> None:
    with pytest.raises(expected, match=why) as caught:
        made()
    assert caught.value.who == made.__name__
    assert "@dataclass(frozen=True)" in caught.value.hint


def test_an_option_that_is_annotated_again_is_kept() -> None:
    assert str(Again()) == "again"
    assert Again(share=0.75).share == 0.75
