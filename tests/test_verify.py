"""What verify and the Rewriter hold: types of values, and tensors with memory of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from sparsefx import (
    Analysis,
    Pass,
    PassReport,
    Pipeline,
    Program,
    Property,
    capture,
    errors,
    function_pass,
)
from sparsefx.masks import find_masks
from sparsefx.passbase import Contract, PassContext
from sparsefx.passes.analyses.ties import ParameterTies
from sparsefx.rewrite import Rewriter
from sparsefx.testing import small_program
from sparsefx.verify import verify

aten = torch.ops.aten


def test_nodes_that_fx_itself_put_in_are_told() -> None:
    @function_pass("behind")
    def behind(program: Program, ctx: PassContext) -> int:
        (node,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        with program.graph.inserting_after(node):
            new = program.graph.call_function(aten.abs.default, (node.args[0],))
        node.replace_all_uses_with(new)
        program.graph.erase_node(node)
        return 1

    program = small_program(lambda x: torch.relu(x) + 1, x=torch.randn(2, 3))
    with pytest.raises(errors.VerifyError) as caught:
        Pipeline((behind(),)).run(program)
    (told,) = caught.value.violations
    assert told == (
        "%abs_default has no inferred shape: it was not made through the Rewriter; "
        "ctx.rewriter.call(...) makes nodes"
    )


@pytest.mark.parametrize("asked", [int, type("Empty", (Analysis,), {}), "sparsity"])
def test_what_is_no_analysis_is_refused(asked: Any) -> None:
    program = small_program(lambda x: torch.relu(x), x=torch.randn(2, 3))
    with pytest.raises(errors.ProgramError, match="expected an Analysis that defines compute"):
        program.facts(asked)


@pytest.mark.parametrize(
    ("replacement", "told"),
    [
        (lambda rw, x: rw.call(aten.sum.dim_IntList, x, [1]), "%sum_1 is float32[batch], it is"),
        (lambda rw, x: rw.call(aten.unsqueeze.default, x, 0), "float32[1, batch, 3]"),
        (lambda rw, x: rw.call(aten.to.dtype, x, torch.bfloat16), "bfloat16[batch, 3]"),
        (lambda rw, x: rw.call(aten.cat.default, [x, x], 0), "float32[2*batch, 3]"),
        (lambda rw, x: rw.call(aten.split.Tensor, x, 1, 1), "(float32[batch, 1], "),
    ],
)
def test_a_replacement_of_another_type_is_refused(
    replacement: Callable[..., torch.fx.Node], told: str
) -> None:
    @function_pass("swap")
    def swap(program: Program, ctx: PassContext) -> int:
        (node,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        with ctx.rewriter.before(node):
            ctx.rewriter.replace(node, replacement(ctx.rewriter, node.args[0]))
        return 1

    program = capture(torch.nn.ReLU(), {"input": torch.randn(2, 3)})
    with pytest.raises(errors.ProgramError) as caught:
        Pipeline((swap(),)).run(program)
    text = str(caught.value)
    assert text.startswith("pass 0 'swap' at %relu: its replacement ")
    assert told in text
    assert "float32[batch, 3]" in text


def test_rules_of_ones_own_are_asked_in_place_of_the_built_in_ones() -> None:
    program = capture(torch.nn.ReLU(), {"input": torch.randn(2, 3)})
    with pytest.raises(errors.VerifyError) as caught:
        verify(program, [lambda each: [f"{len(each.graph.nodes)} nodes are too many"]])
    assert caught.value.violations == ("3 nodes are too many",)


def test_equal_sizes_may_be_written_unlike() -> None:
    program = capture(torch.nn.ReLU(), {"input": torch.randn(2, 3)})
    (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
    rewriter = Rewriter(program)
    with rewriter.before(relu):
        doubled = rewriter.call(aten.cat.default, [relu.args[0], relu.args[0]], 0)
        halved = rewriter.call(
            aten.slice.Tensor, doubled, 0, 0, rewriter.call(aten.sym_size.int, relu.args[0], 0)
        )
    rewriter.replace(relu, halved)
    verify(program)


@function_pass("smaller")
def smaller(program: Program, ctx: PassContext) -> int:
    """Leaves out an expand: additions broadcast anyway."""
    (node,) = program.graph.find_nodes(op="call_function", target=aten.expand.default)
    ctx.rewriter.replace(node, node.args[0], same_type=False)
    return 1


def test_a_smaller_replacement_is_let_through_where_its_users_give_the_same() -> None:
    x, row = torch.randn(2, 3), torch.randn(1, 3)
    program = small_program(lambda x, row: x + row.expand(2, 3), x=x, row=row)
    after = Pipeline((smaller(),)).run(program)
    assert torch.equal(after(x=x, row=row)["output"], x + row)
    program = small_program(lambda x, row: (x + 1, row.expand(2, 3).exp()), x=x, row=row)
    with pytest.raises(errors.VerifyError, match=r"%exp \(aten.exp.default\) is recorded as"):
        Pipeline((smaller(),)).run(program)


def test_types_that_were_changed_behind_the_rewriter_are_found() -> None:
    @function_pass("behind")
    def behind(program: Program, ctx: PassContext) -> int:
        (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        with ctx.rewriter.before(relu):
            turned = ctx.rewriter.call(aten.t.default, relu.args[0])
        relu.args = (turned,)
        return 1

    program = capture(torch.nn.ReLU(), {"input": torch.randn(2, 3)})
    with pytest.raises(errors.VerifyError) as caught:
        Pipeline((behind(),)).run(program)
    assert "%relu (aten.relu.default) is recorded as float32[batch, 3]" in str(caught.value)
    assert "gives float32[3, batch]" in str(caught.value)


def test_an_input_that_is_gone_from_the_graph_alone_is_found() -> None:
    @function_pass("without-mask")
    def without_mask(program: Program, ctx: PassContext) -> int:
        (mask,) = program.graph.find_nodes(op="placeholder", target="mask")
        (x,) = program.graph.find_nodes(op="placeholder", target="x")
        mask.replace_all_uses_with(x)
        program.graph.erase_node(mask)
        return 1

    program = small_program(lambda x, mask: x * mask, x=torch.ones(2), mask=torch.ones(2))
    with pytest.raises(errors.VerifyError) as caught:
        Pipeline((without_mask(),)).run(program)
    (told,) = caught.value.violations
    assert told == (
        "the graph takes ('x',), the signature says ('x', 'mask'): "
        "ctx.rewriter.remove_input and add_input change both"
    )


def test_an_output_of_another_type_is_found() -> None:
    @function_pass("other-output")
    def other_output(program: Program, ctx: PassContext) -> int:
        (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        with ctx.rewriter.after(relu):
            ctx.rewriter.set_output("output", ctx.rewriter.call(aten.t.default, relu))
        return 1

    program = capture(torch.nn.ReLU(), {"input": torch.randn(2, 3)})
    with pytest.raises(
        errors.VerifyError, match="the output output changed from float32"
    ) as caught:
        Pipeline((other_output(),)).run(program)
    assert "to float32[3, batch]" in str(caught.value)


def test_two_names_on_one_memory_are_found() -> None:
    @function_pass("alias")
    def alias(program: Program, ctx: PassContext) -> int:
        (linear,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
        shared = ctx.rewriter.add_buffer("shared", program.tensor("weight").detach()[:1])
        with ctx.rewriter.before(linear):
            x = ctx.rewriter.call(aten.mul.Tensor, linear.args[0], shared)
        ctx.rewriter.set_args(linear, x, *linear.args[1:])
        return 1

    program = small_program(torch.nn.Linear(3, 2), input=torch.randn(1, 3))
    with pytest.raises(errors.VerifyError, match="share memory without being tied") as caught:
        Pipeline((alias(),)).run(program)
    assert "shared" in str(caught.value)
    assert "weight" in str(caught.value)


class Twins(nn.Module):
    """Two parameters on one memory: all of it, or a part."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 4))
        self.second = nn.Parameter(self.first.detach()[:rows])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` times both."""
        return x @ self.first.t() @ self.second.t()


def test_two_parameters_on_one_memory_are_tied_when_captured() -> None:
    program = capture(Twins(4), {"x": torch.randn(2, 4)})
    assert program.ties == (("first", "second"),)
    assert program.facts(ParameterTies).of("second") is not None
    verify(program)


def test_parameters_that_share_a_part_of_their_memory_are_refused() -> None:
    with pytest.raises(errors.CaptureError, match="first and second share a part of their memory"):
        capture(Twins(2), {"x": torch.randn(2, 4)})


@dataclass(frozen=True)
class Forget(Pass):
    """Says that the masks are gone, and leaves them."""

    name: ClassVar[str] = "forget"

    ends: str = "masked"

    def contract(self) -> Contract:
        return Contract(destroys=frozenset({Property(self.ends)}))

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        return PassReport(1)


@pytest.mark.parametrize(
    ("text", "ends", "told"),
    [
        ("magnitude-prune{sparsity=0.5,roles=other}", "masked", "the graph has weight_mask"),
        ("quantize-prepare{roles=other}", "quant-prepared", "the graph has fake quantization"),
    ],
)
def test_what_is_still_there_is_not_gone(text: str, ends: str, told: str) -> None:
    program = small_program(nn.Linear(4, 4), input=torch.randn(2, 4))
    prepared = Pipeline.parse(text).run(program)
    assert Property(ends) in prepared.properties
    with pytest.raises(errors.VerifyError, match=told) as caught:
        Pipeline((Forget(ends),)).run(prepared)
    assert caught.value.who == f"pass 0 '{Forget(ends)}'"


class BringsItsOwnMask(nn.Module):
    """Looks as if sparsefx had masked it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.weight_mask: torch.Tensor
        self.register_buffer("weight_mask", torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` times the masked weight."""
        return x @ (self.weight * self.weight_mask)


def test_a_model_may_bring_masks_of_its_own() -> None:
    program = small_program(BringsItsOwnMask(), x=torch.randn(2, 4))
    assert find_masks(program)
    Pipeline((Forget(),)).run(program)


def test_lint_says_what_is_wrong_and_not_the_whole_graph() -> None:
    @function_pass("too-late")
    def too_late(program: Program, ctx: PassContext) -> int:
        (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        (add,) = program.graph.find_nodes(op="call_function", target=aten.add.Tensor)
        add.append(relu)
        return 1

    program = small_program(lambda x: torch.relu(x) + 1, x=torch.randn(2, 3))
    with pytest.raises(errors.VerifyError) as caught:
        Pipeline((too_late(),)).run(program)
    told = caught.value.violations[0]
    assert told.startswith("FX lint: Argument 'relu' of Node 'add' was used before it")
    assert "\n" not in told


class Two(nn.Module):
    """Two linears, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        found: torch.Tensor = self.first(x) + self.second(x)
        return found


def first_alone(tidy: bool) -> Pass:
    """Lets the first linear stand for the second."""

    @function_pass("first-alone")
    def first_alone(program: Program, ctx: PassContext) -> int:
        found = program.graph.find_nodes(op="call_function", target=aten.linear.default)
        if len(found) == 1:
            return 0
        first, second = found
        ctx.rewriter.replace(second, first, erase=not tidy)
        if tidy:
            ctx.rewriter.erase_unused([second])
        return 1

    return first_alone(on_no_match="ignore")


def test_parameters_that_a_pass_left_behind_are_told(caplog: pytest.LogCaptureFixture) -> None:
    program = small_program(Two(), x=torch.randn(1, 3))
    left = Pipeline((first_alone(tidy=False), first_alone(tidy=False))).run(program)
    told = "it left parameters that nothing reads: second.bias, second.weight"
    assert [entry.notes for entry in left.history] == [(told,), ()]
    assert caplog.text.count(told) == 1
    assert "idle" not in caplog.text
    assert "ctx.rewriter.erase_unused takes them out" in caplog.text
    caplog.clear()
    tidied = Pipeline((first_alone(tidy=True),)).run(program)
    assert tidied.history[-1].notes == ()
    assert not caplog.text
    assert "second.weight" not in tidied.named_tensors()
