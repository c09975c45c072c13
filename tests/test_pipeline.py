"""Contracts of pipelines, what they do to Programs, fixpoints, instruments."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import sparsefx
from sparsefx import (
    Pipeline,
    Program,
    Property,
    errors,
    function_pass,
)
from sparsefx.errors import SparsefxError
from sparsefx.instruments import DumpDir, Numerics, Reproducer, Timing
from sparsefx.passbase import PassContext
from sparsefx.pipeline import Fixpoint, PassEvent
from sparsefx.testing import small_program
from tests.tiny_models import example_batch, tiny
from tests.toy_passes import NeedsLock, Scale, break_output, crash, relu_program

aten = torch.ops.aten


def test_wrong_order_is_refused_before_anything_runs() -> None:
    with pytest.raises(errors.PipelineError) as caught:
        Pipeline((Scale(), NeedsLock())).run(relu_program())
    assert "pass 1 'needs-lock'" in str(caught.value)
    assert "requires locked" in str(caught.value)


@dataclass(frozen=True)
class NeedsInference(Scale):
    name: ClassVar[str] = "needs-inference"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})


def test_the_option_with_which_a_pass_gives_a_property_is_named() -> None:
    pipeline = Pipeline((NeedsInference(),))
    with pytest.raises(errors.PipelineError, match=r"run 'simplify\{inference=True\}' before it"):
        pipeline.check()
    (simple,) = Pipeline.parse("simplify{inference=True}").passes
    assert simple.contract().establishes == {Property.INFERENCE}
    assert Property.MASKED in simple.contract().forbids
    assert Pipeline((simple, NeedsInference())).check() == {Property.INFERENCE, Property.FUSED}


def test_run_leaves_the_callers_program_alone_and_writes_history() -> None:
    program = relu_program()
    before = program.fingerprint()
    result = Pipeline((Scale(factor=4.0),)).run(program)
    assert program.fingerprint() == before
    (entry,) = result.history
    assert (entry.spec, entry.applied, entry.changed) == ("scale{factor=4.0}", 1, True)
    assert result.properties == {Property.FUSED}


@pytest.mark.parametrize("on_no_match", ["error", "warn", "ignore"])
def test_no_match_is_never_silent(on_no_match: str, caplog: pytest.LogCaptureFixture) -> None:
    program = small_program(lambda x: x + 1, x=torch.randn(2))
    pipeline = Pipeline.parse("").__add__(Scale(on_no_match=on_no_match))  # type: ignore[arg-type]
    if on_no_match == "error":
        with pytest.raises(errors.PassError, match="no relu"):
            pipeline.run(program)
        return
    result = pipeline.run(program)
    assert ("applied nowhere" in caplog.text) == (on_no_match == "warn")
    assert not result.history[0].changed
    assert result.properties == frozenset()


@pytest.mark.parametrize("on_no_match", ["error", "warn"])
def test_a_change_that_is_not_counted_is_told(
    on_no_match: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def uncounted(program: Program, ctx: PassContext) -> int:
        (linear,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
        ctx.rewriter.set_tensor(str(linear.args[1].target), torch.zeros(4, 4))
        return 0

    program = small_program(torch.nn.Linear(4, 4), input=torch.ones(1, 4))
    pipeline = Pipeline((function_pass("uncounted")(uncounted)(on_no_match=on_no_match),))
    if on_no_match == "error":
        with pytest.raises(errors.PassError, match="it changed the Program and says that it"):
            pipeline.run(program)
        return
    assert pipeline.run(program).history[0].changed
    assert "uncounted: it changed the Program and says that it applied nowhere" in caplog.text
    assert "found nothing" not in caplog.text


def test_a_giver_that_applied_nowhere_is_named() -> None:
    pipeline = Pipeline.parse("magnitude-prune{sparsity=0.5,roles=encoder},fold-masks")
    program = small_program(torch.nn.Linear(4, 4), input=torch.ones(1, 4))
    with pytest.raises(errors.PipelineError, match=r"fold-masks.*requires masked") as caught:
        pipeline.run(program)
    assert "ran before, but applied nowhere" in caught.value.hint


def test_a_broken_graph_is_caught_after_the_pass() -> None:
    with pytest.raises(errors.VerifyError) as caught:
        Pipeline((break_output(),)).run(relu_program())
    assert "pass 0 'break-output'" in str(caught.value)
    assert "the graph returns ()" in str(caught.value)


def test_an_error_of_a_pass_names_the_pass(tmp_path: Path) -> None:
    with pytest.raises(errors.PipelineError, match="pass 1 'crash': ValueError: inside") as caught:
        Pipeline((Scale(), crash())).run(relu_program(), instruments=[Reproducer(tmp_path)])
    again = Program.load(tmp_path / "program")
    assert "aten.mul.Tensor(%relu, 2.0)" in again.dump()
    assert "inside" in (tmp_path / "failure.json").read_text()
    assert re.search(r"hint: raised at \S+toy_passes.py:\d+; the Reproducer", str(caught.value))


def test_a_single_pass_is_no_sequence_of_passes() -> None:
    with pytest.raises(errors.PipelineError, match=r"Pipeline\(\(one,\)\)"):
        Pipeline(Scale())  # type: ignore[arg-type]  # what this is about


def test_fixpoint_that_does_not_settle_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsefx.registry.parse_passes", lambda text: (Scale(),))
    with pytest.raises(errors.ConvergenceError, match="still changing after 3 rounds"):
        Pipeline((Fixpoint(passes="scale", max_rounds=3),)).run(relu_program())


def test_fixpoint_has_the_contract_of_its_passes(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(errors.PipelineError, match="requires masked"):
        Pipeline.parse("fixpoint{passes='fold-masks'}").run(relu_program())
    once = "magnitude-prune{sparsity=0.5,roles=other}"
    pipeline = Pipeline.parse(f"{once},fixpoint{{passes='fold-masks'}},{once}")
    found = pipeline.run(small_program(torch.nn.Linear(4, 4), input=torch.ones(1, 4)))
    assert found.properties == {Property.MASKED}
    assert not caplog.text  # the last round of a fixpoint applies nowhere


def test_instruments(tmp_path: Path) -> None:
    timing = Timing()
    batch = {"x": torch.randn(2, 3)}
    allowed = Numerics(batch, allow=frozenset({"scale"}))
    Pipeline((Scale(),)).run(relu_program(), instruments=[timing, DumpDir(tmp_path), allowed])
    assert [name for name, _ in timing.seconds] == ["scale"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00-input.txt", "01-scale.txt"]
    with pytest.raises(errors.PassError, match="moved the output 'output'"):
        Pipeline((Scale(),)).run(relu_program(), instruments=[Numerics(batch)])


def outputs_of_many_kinds(x: torch.Tensor) -> dict[str, torch.Tensor]:
    hidden = torch.relu(x)
    return {"truth": hidden > 0, "masked": hidden.masked_fill(x > 0, -torch.inf), "none": x[:0]}


def test_numerics_takes_outputs_of_any_kind() -> None:
    batch = {"x": torch.tensor([[-1.0, 2.0]])}
    program = small_program(outputs_of_many_kinds, x=batch["x"])
    done = Pipeline.parse("simplify").run(program, instruments=[Numerics(batch)])
    assert len(done.history) == len(program.history) + 1
    with pytest.raises(errors.PassError, match="moved the output 'truth' by 1"):
        Pipeline((Scale(-1.0),)).run(program, instruments=[Numerics(batch)])


# -- rewriter, analyses, verifier ------------------------------------------------------------------


def test_a_pipeline_runs_in_place_and_leaves_what_runs() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    program = small_program(torch.nn.ReLU(), input=x)
    copied = Pipeline((Scale(3.0),)).run(program)
    assert torch.equal(program(input=x)["output"], torch.tensor([[0.0, 2.0]]))
    assert Pipeline((Scale(3.0),)).run(program, in_place=True) is program
    assert program.dump() == copied.dump()
    assert torch.equal(program(input=x)["output"], torch.tensor([[0.0, 6.0]]))


def test_an_instrument_sees_code_as_new_as_the_graph() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    seen = []

    class Run:
        def before_pass(self, event: object) -> None:
            pass

        def after_pass(self, event: PassEvent) -> None:
            seen.append(event.program(input=x)["output"][0, 1].item())

    Pipeline((Scale(2.0), Scale(3.0))).run(
        small_program(torch.nn.ReLU(), input=x), instruments=[Run()]
    )
    assert seen == [4.0, 12.0]


def test_a_function_that_forgets_to_return_is_told() -> None:
    def forgets(program: Program, ctx: PassContext) -> int:
        return None  # type: ignore[return-value]  # the mistake

    with pytest.raises(SparsefxError, match="the function returned None"):
        Pipeline((function_pass("forgets")(forgets)(),)).run(relu_program())


def test_pipelines_run_in_several_threads_on_one_program() -> None:
    program = sparsefx.capture(tiny("bert-cls"), example_batch())
    text = "decompose-attention,magnitude-prune{sparsity=0.5},fold-masks,simplify{inference=True}"
    pipeline = Pipeline.parse(text)
    alone = pipeline.run(program).fingerprint()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: pipeline.run(program).fingerprint(), range(8)))
    assert found == [alone] * 8
