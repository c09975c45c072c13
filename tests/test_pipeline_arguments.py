"""What pipelines, passes and the Rewriter say to what they cannot take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx

from sparsefx import Pass, PassReport, Pipeline, Program, Property, errors, function_pass
from sparsefx.instruments import Timing
from sparsefx.passbase import PassContext
from sparsefx.testing import small_program
from tests.toy_passes import Scale, relu_program

aten = torch.ops.aten


@pytest.mark.parametrize("given", [None, ["simplify"], Scale()])
def test_what_is_no_text_is_not_parsed(given: Any) -> None:
    with pytest.raises(errors.SpecError, match="expected text, got a") as caught:
        Pipeline.parse(given)
    assert "'simplify,fold-masks'" in caught.value.hint


@pytest.mark.parametrize("given", [None, "simplify", [Scale], 3])
def test_what_is_no_pass_is_no_pipeline(given: Any) -> None:
    with pytest.raises(errors.PipelineError, match="expected passes, got") as caught:
        Pipeline(given)
    assert "Pipeline.parse(text)" in caught.value.hint


def test_passes_that_come_one_by_one_are_kept() -> None:
    several: Any = (item for item in (Scale(2.0), Scale(3.0)))
    assert Pipeline(several) == Pipeline((Scale(2.0), Scale(3.0)))


@pytest.mark.parametrize("given", [Timing(), [Timing], [3], "timing", [Timing(), object()]])
def test_instruments_are_checked_before_anything_runs(given: Any) -> None:
    with pytest.raises(errors.PipelineError, match="pipeline at instruments: expected a list"):
        Pipeline((Scale(),)).run(relu_program(), instruments=given)


@dataclass(frozen=True)
class Nameless(Pass):
    """Has everything but a name."""

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        return PassReport(0)


def test_a_pass_has_a_name_that_its_text_can_be_read_by() -> None:
    with pytest.raises(errors.PassError, match=r"Nameless at name: it has no name(.|\n)*ClassVar"):
        Nameless()
    for bad in ("Bad Name,{}", "", 3):
        with pytest.raises(
            errors.PassError, match=r"Bad at name: its name is .*, which is no name"
        ):
            type("Bad", (Nameless,), {"name": bad})
    assert str(type("Good", (Nameless,), {"name": "good.name-2"})()) == "good.name-2"


def ran(work: Callable[[Program, PassContext], object]) -> str:
    """What is told of a second pass that does this work."""

    @function_pass("second")
    def second(program: Program, ctx: PassContext) -> int:
        work(program, ctx)
        return 1

    program = small_program(torch.nn.Linear(4, 4), input=torch.randn(2, 4))
    with pytest.raises(errors.SparsefxError) as caught:
        Pipeline((Scale(on_no_match="ignore"), second())).run(program)
    return str(caught.value)


def linear_of(program: Program) -> fx.Node:
    found: fx.Node = program.graph.find_nodes(op="call_function", target=aten.linear.default)[0]
    return found


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (
            lambda p, ctx: ctx.rewriter.add_parameter("new", torch.zeros(2, dtype=torch.int8)),
            "int8 cannot be trained\n  hint: add_buffer",
        ),
        (lambda p, ctx: ctx.rewriter.set_tensor("weight", [1, 2]), "expected a tensor, got [1, 2]"),
        (lambda p, ctx: ctx.rewriter.add_buffer("state", 3.0), "expected a tensor, got 3.0"),
        (lambda p, ctx: ctx.rewriter.add_parameter("", torch.ones(1)), "'' is no name of a tensor"),
        (lambda p, ctx: ctx.rewriter.add_buffer("a..b", torch.ones(1)), "'a..b' is no name of"),
        (
            lambda p, ctx: ctx.rewriter.add_parameter("weight.x", torch.ones(1)),
            "'weight' is a tensor, or no module",
        ),
    ],
)
def test_the_rewriter_says_what_is_no_tensor(work: Any, told: str) -> None:
    found = ran(work)
    assert found.startswith("pass 1 'second'")
    assert told in found


def custom(x: torch.Tensor) -> torch.Tensor:
    return x


def call(target: object, *more: object) -> Callable[[Program, PassContext], None]:
    """Work that puts a call of ``target`` in, before the linear."""

    def work(program: Program, ctx: PassContext) -> None:
        linear = linear_of(program)
        with ctx.rewriter.before(linear):
            ctx.rewriter.call(target, linear.args[0], *more)  # type: ignore[arg-type]  # may be none

    return work


def parse_nothing(program: Program, ctx: PassContext) -> None:
    Pipeline.parse("nothing")


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda p, ctx: p.tensor("nope"), "program at nope: there is no tensor 'nope'"),
        (call(aten.mm.default, 3), "shapes at %mm: aten.mm.default refuses its inputs"),
        (call(custom), "graph: the graph calls <function custom"),
        (parse_nothing, "there is no pass 'nothing'"),
    ],
)
def test_the_pass_is_named_in_front_of_what_others_say(work: Any, told: str) -> None:
    assert ran(work).startswith(f"pass 1 'second': {told}")


def test_a_fault_is_placed_in_the_pass_not_in_what_it_calls() -> None:
    found = ran(lambda program, ctx: torch.ones(2) @ torch.ones(3))
    assert "RuntimeError" in found
    assert f"hint: raised at {__file__}:" in found
    nothing: Any = None
    assert f"raised at {__file__}:" in ran(lambda program, ctx: ctx.rewriter.erase(nothing))


@pytest.mark.parametrize("given", [frozenset({"banana"}), ["masked"], None])
def test_properties_that_are_none_are_refused(given: Any) -> None:
    told = ran(lambda program, ctx: setattr(program, "properties", given))
    assert told.startswith("pass 1 'second' at program.properties: program.properties ")
    assert "Property.MASKED" in told or "the properties are MASKED" in told


def test_a_function_pass_may_say_that_it_changes_the_signature() -> None:
    def tap(program: Program, ctx: PassContext) -> int:
        """Returns what the linear gives, besides."""
        ctx.rewriter.set_output("tapped", linear_of(program))
        return 1

    program = small_program(torch.nn.Linear(4, 4), input=torch.randn(2, 4))
    with pytest.raises(errors.VerifyError, match="does not declare"):
        Pipeline((function_pass("tap")(tap)(),)).run(program)
    declared = function_pass("tap", changes_signature=True)(tap)()
    assert Pipeline((declared,)).run(program).signature.outputs == ("output", "tapped")


@pytest.mark.parametrize("on_no_match", ["error", "warn"])
def test_a_pass_that_only_establishes_a_property_has_done_something(
    on_no_match: str, caplog: pytest.LogCaptureFixture
) -> None:
    program = small_program(torch.nn.Linear(4, 4), input=torch.randn(2, 4))
    simplify = Pipeline.parse(f"simplify{{inference=True,on_no_match={on_no_match}}}")
    plain = simplify.run(program)
    assert plain.properties == {Property.INFERENCE}
    assert not caplog.text
    if on_no_match == "error":
        with pytest.raises(errors.PassError, match="it applied nowhere and found nothing"):
            simplify.run(plain)
