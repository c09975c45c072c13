"""Spec text, options, rewriter, verifier and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefx import (
    Pipeline,
    Program,
    Property,
    errors,
    function_pass,
    registry,
)
from sparsefx.analysis import Analysis
from sparsefx.instruments import Timing
from sparsefx.passbase import PassContext
from sparsefx.rewrite import Rewriter
from sparsefx.spec import build, format_spec, format_value, parse_specs
from sparsefx.testing import assert_pass, graph_text, small_program
from sparsefx.verify import verify
from tests.toy_passes import Scale, relu_program

aten = torch.ops.aten


@given(
    factor=st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    words=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    note=st.none() | st.text(max_size=12),
)
def test_text_form_round_trips(factor: float, words: tuple[str, ...], note: str | None) -> None:
    item = Scale(factor=factor, words=words, note=note)
    (spec,) = parse_specs(format_spec(item))
    assert build(Scale, spec) == item


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(encoder,other)", ("encoder", "other")),
        ("[ encoder , lock-step ]", ("encoder", "lock-step")),
        ("(encoder,)", ("encoder",)),
        ("[encoder]", ("encoder",)),
        ("(encoder)", "encoder"),
        ("(a,'b, (c',3,none)", ("a", "b, (c", 3, None)),
        ("((a,1),[b,(c,)])", (("a", 1), ("b", ("c",)))),
    ],
)
def test_lists_hold_bare_words(text: str, value: object) -> None:
    (spec,) = parse_specs(f"scale{{words={text},factor=2}}")
    assert spec.options == {"words": value, "factor": 2}
    (again,) = parse_specs(f"scale{{words={format_value(value)}}}")
    assert again.options["words"] == value


def test_pass_is_hashable_and_survives_pickling() -> None:
    item = Scale(factor=3.0, words=("a",))
    assert pickle.loads(pickle.dumps(item)) == item
    assert hash(item) == hash(Scale(factor=3.0, words=("a",)))


@pytest.mark.parametrize(
    ("text", "caret", "expected"),
    [
        ("scale{factor=high}", 6, "scale: factor='high': expected a number"),
        ("scale{words=3}", 6, "scale: words=3: expected a text or a list of texts"),
        ("scale{words=(1,)}", 6, "scale: words=(1,): expected a text or a list of texts"),
        ("scale{note=2}", 6, "scale: note=2: expected a text or None"),
        ("scale{on_no_match=stop}", 6, "on_no_match='stop': expected 'error', 'warn' or 'ignore'"),
        ("scale{factr=1}", 6, "did you mean 'factor'?"),
        ("scale{factor=0}", 6, "expected a number other than 0"),
        ("scale{factor=1,factor=2}", 15, "given twice"),
        ("scale{factor=@}", 13, "is not a value"),
        ("scale{words=(a,b c)}", 15, "a list of these: (encoder,other) or (1,2)"),
        ("scale{words=(a,,b)}", 15, "'' is not a value"),
        ("scale{words=(a,b)c}", 17, "'(a,b)c' is not a value"),
        ("scale{factor=50%}", 13, "are known in recipes alone"),
        ("scale{note=5x7}", 11, "write it as text: '5x7'"),
        ("scale{factor=1", 5, "not ended"),
        ("scale scale", 6, "expected ','"),
        ("{", 0, "expected the name"),
        ("scale{factor}", 6, "has no value"),
    ],
)
def test_wrong_text_points_at_the_place(text: str, caret: int, expected: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        build(Scale, parse_specs(text)[0])
    assert expected in str(caught.value)
    if "not ended" not in expected:
        assert caught.value.position == caret


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("magnitude-prune{frequency=1.5}", "magnitude-prune: frequency=1.5: expected a whole numb"),
        ("magnitude-prune{end=1e3}", "hint: write 1000"),
        ("magnitude-prune{sparsity='high'}", "sparsity='high': expected a number"),
        ("magnitude-prune{begin=True}", "begin=True: expected a whole number"),
        ("magnitude-prune{scope=all}", "scope='all': expected 'tensor' or 'global'"),
        ("simplify{inference=1}", "inference=1: expected True or False"),
        ("distill{layers=((0,1.5),)}", "layers=((0, 1.5),): expected "),
        ("fixpoint{passes=3}", "passes=3: expected a text"),
        ("quantize-prepare{requantize=none}", "as a text it is written 'none'"),
        ("fixpoint{passes=''}", "passes='': expected at least one pass"),
        ("fixpoint", "passes='': expected at least one pass"),
    ],
)
def test_options_are_held_to_the_types_of_their_fields(text: str, expected: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        Pipeline.parse(text)
    assert expected in str(caught.value)


def test_options_given_in_python_are_held_to_their_types_too() -> None:
    with pytest.raises(errors.PassError, match="factor='high': expected a number") as caught:
        Scale(factor="high")  # type: ignore[arg-type]
    assert (caught.value.who, caught.value.where) == ("scale", "factor")
    assert Scale(factor=3).factor == 3


@pytest.mark.parametrize(
    ("returned", "hint"),
    [(None, r"return Pipeline\(\(\.\.\.\)\)"), ("simplify", r"Pipeline\.parse\('simplify'\)")],
)
def test_what_a_target_returns_for_a_pipeline_is_checked(returned: Any, hint: str) -> None:
    def pipeline(self: object) -> Any:
        return returned

    odd = type("Odd", (registry.target_class("reference"),), {"name": "odd", "pipeline": pipeline})
    why = rf"odd: pipeline\(\) returned {returned!r}, not a Pipeline\n.*pipeline: .*{hint}"
    with pytest.raises(errors.TargetError, match=why):
        odd().compile(relu_program())


def test_options_of_a_target_are_held_to_their_types() -> None:
    with pytest.raises(errors.SpecError, match="reference: batch='many': expected a whole number"):
        registry.parse_target("reference{batch=many}")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cpu", {"threads": "2"}, "threads='2': expected a whole number"),
        ("cpu", {"threads": -1}, "threads=-1: expected 0 to 1024"),
        ("cpu", {"attention": "int8"}, "attention='int8': expected 'auto' or 'fp32'"),
        ("cpu", {"format": "rowz"}, "format='rowz': there is no such format"),
        ("onnxruntime", {"optimize": 1}, "optimize=1: expected True or False"),
        ("onnxruntime", {"repeats": 0}, "repeats=0: expected at least 1"),
        ("reference", {"arithmetic": "int"}, "arithmetic='int': expected 'float' or 'integer'"),
        ("reference", {"batch": 0}, "batch=0: expected at least 1"),
        ("accelerator", {"arch": None}, "arch=None: expected a text"),
    ],
)
def test_options_of_a_target_are_checked_in_python_too(
    name: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(errors.TargetError, match=expected) as caught:
        registry.target_class(name)(**options)
    assert (caught.value.who, caught.value.where) == (name, next(iter(options)))


@pytest.mark.parametrize("name", ["needs", "last_step"])
def test_a_method_in_place_of_a_property_is_refused(name: str) -> None:
    with pytest.raises(errors.PassError, match=f"{name} is a method; it has to be a property"):
        type("Wrong", (Scale,), {name: lambda self: 3})


def test_unknown_pass_suggests_a_name() -> None:
    with pytest.raises(errors.SpecError, match="did you mean 'fixpoint'"):
        Pipeline.parse("fixpont")


# -- pipeline --------------------------------------------------------------------------------------


def test_an_error_keeps_its_own_cause() -> None:
    @function_pass("wrap")
    def wrap(program: Program, ctx: PassContext) -> int:
        raise errors.PassError("outer", who="wrap") from KeyError("inner")

    class Broken(Timing):
        def after_pass(self, event: object) -> None:
            raise RuntimeError("of the instrument")

    with pytest.raises(errors.PassError, match="outer") as caught:
        Pipeline((wrap(),)).run(relu_program(), instruments=[Broken()])
    assert isinstance(caught.value.__cause__, KeyError)


def test_new_nodes_carry_shape_author_and_origin() -> None:
    result = Pipeline((Scale(),)).run(relu_program())
    (node,) = result.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert node.meta["by"] == "scale"
    fact = result.shape_of(node)
    assert fact is not None
    assert fact.dims == (2, 3)


def test_an_operator_that_refuses_its_inputs_is_reported_at_once() -> None:
    program = relu_program()
    rewriter = Rewriter(program, "test")
    (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
    with rewriter.after(relu), pytest.raises(errors.ProgramError, match="refuses its inputs"):
        rewriter.call(aten.matmul.default, relu, relu)


def test_setting_a_tensor_that_is_not_there_points_at_what_adds_one() -> None:
    with pytest.raises(
        errors.ProgramError, match=r"no tensor 'state'\n.*; add_buffer or add_param"
    ):
        Rewriter(relu_program(), "test").set_tensor("state", torch.zeros(2))


def test_erasing_a_used_node_is_refused() -> None:
    program = relu_program()
    (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
    with pytest.raises(errors.ProgramError, match="still used by %add"):
        Rewriter(program, "test").erase(relu)


class Zeros(Analysis[int]):
    reads_values = True

    @classmethod
    def compute(cls, program: Program) -> int:
        return sum(int((t == 0).sum()) for t in program.named_tensors().values())


def test_facts_follow_tensor_values() -> None:
    program = small_program(torch.nn.Linear(3, 2), input=torch.randn(1, 3))
    assert program.facts(Zeros) == 0
    with torch.no_grad():
        program.tensor("weight").zero_()
    assert program.facts(Zeros) == 6


def test_facts_and_digests_follow_a_fused_step() -> None:
    program = small_program(torch.nn.Linear(3, 2), input=torch.ones(1, 3))
    with torch.no_grad():
        program.tensor("bias").fill_(1)
    before = program.fingerprint()
    assert program.facts(Zeros) == 0
    torch.autograd.backward(program(input=torch.ones(1, 3))["output"].sum())
    torch.optim.SGD([program.tensor("bias")], lr=1.0, fused=True).step()
    assert program.facts(Zeros) == 2
    assert program.fingerprint() != before


def test_a_program_tells_where_its_tensors_are() -> None:
    program = small_program(torch.nn.Linear(3, 2), input=torch.ones(1, 3))
    assert program.device == torch.device("cpu")
    assert program.to("meta").device == torch.device("meta")
    assert small_program(lambda x: torch.relu(x), x=torch.ones(1, 3)).device == torch.device("cpu")


class Wrapper(torch.nn.Module):
    """What trainers are given: the module is a part of it, and the Program is called."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.inner = program.module
        self.program = program


def test_a_deep_copy_is_of_one_piece() -> None:
    program = small_program(torch.nn.Linear(3, 2), input=torch.ones(1, 3))
    program.infer_shapes()
    wrapper = Wrapper(program)
    twin = copy.deepcopy(wrapper)
    assert twin.program.module is twin.inner
    with torch.no_grad():
        twin.program.tensor("bias").add_(1.0)
    same = {"input": torch.ones(1, 3)}
    moved = twin.program(**same)["output"] - program(**same)["output"]
    assert torch.allclose(moved, torch.ones(1, 2))


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy])
def test_a_program_names_the_way_to_keep_it(way: Callable[[object], object]) -> None:
    program = small_program(torch.nn.Linear(3, 2), input=torch.ones(1, 3))
    with pytest.raises(errors.ProgramError, match=r"program\.save\(folder\)"):
        way(program)


def test_verify_lists_all_violations() -> None:
    program = relu_program()
    program.module.register_buffer("stray", torch.zeros(1))
    program.properties = frozenset({Property.DISTILLING})
    with pytest.raises(errors.VerifyError) as caught:
        verify(program)
    assert len(caught.value.violations) == 2
    assert "stray is not used" in str(caught.value)


# -- errors, test kit, storage ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        errors.PassError("why", who="who", where="where", hint="hint"),
        errors.SpecError("why", text="abc", position=1),
        errors.VerifyError(["a", "b"], who="x"),
    ],
)
def test_errors_survive_pickling(error: errors.SparsefxError) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error)
    assert twin.__dict__ == error.__dict__


def test_assert_pass_shows_a_diff() -> None:
    with pytest.raises(AssertionError, match="found"):
        assert_pass(Scale(), relu_program(), "return {output: %relu}")
    assert "%add = aten.add.Tensor(%relu, 1)" in graph_text(relu_program())
