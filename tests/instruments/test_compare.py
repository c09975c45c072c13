"""The per-node comparison: names the first node that differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsefx import Pipeline, Program
from sparsefx.backends.reference.target import Reference, ReferenceCompiled
from sparsefx.errors import SparsefxError
from sparsefx.instruments.compare import compare, compare_fed, feed_quantized, trace
from sparsefx.passes.analyses.quantized import QuantizedLinears
from sparsefx.rewrite import Rewriter
from sparsefx.target import Target
from sparsefx.testing import small_program
from sparsefx.verify import verify
from tests.int8 import int8
from tests.programs import shared
from tests.tiny_models import example_batch

aten = torch.ops.aten


def chain() -> Program:
    return small_program(lambda x: torch.relu(torch.tanh(x + 1.0) * 2.0), x=torch.zeros(2, 3))


def broken() -> Program:
    """The chain with a sine in place of the hyperbolic tangent."""
    program = chain()
    rewriter = Rewriter(program)
    for node in program.graph.find_nodes(op="call_function", target=aten.tanh.default):
        with rewriter.before(node):
            new = rewriter.call(aten.sin.default, *node.args)
        rewriter.replace(node, new)
    rewriter.finish()
    return program


def test_equal_programs_agree() -> None:
    found = compare(chain(), chain(), {"x": torch.ones(2, 3)})
    assert found.first is None
    assert str(found) == "all 4 nodes agree"


def test_first_differing_node_is_named() -> None:
    found = compare(chain(), broken(), {"x": torch.ones(2, 3)})
    assert (found.only_expected, found.only_found) == (("tanh",), ("sin",))
    assert found.first is not None
    assert found.first.node == "mul"
    assert found.first.op == "aten.mul.Tensor"
    assert found.first.share == 1.0
    assert "2 of 3 nodes differ; the first is %mul (aten.mul.Tensor)" in str(found)
    assert str(found).endswith("; in expected alone: 1; in found alone: 1")


def test_programs_without_a_node_in_common_are_not_said_to_agree() -> None:
    other = small_program(lambda x: torch.sin(x), x=torch.zeros(2, 3))
    found = compare(chain(), other, {"x": torch.ones(2, 3)})
    assert str(found) == "no node is in both; in expected alone: 4; in found alone: 1"


def test_tolerance_and_chosen_nodes() -> None:
    batch = {"x": torch.ones(2, 3)}
    assert compare(chain(), broken(), batch, tolerance=0.5).first is None
    assert [row.node for row in compare(chain(), broken(), batch, nodes=["relu"]).rows] == ["relu"]
    with pytest.raises(SparsefxError, match="did you mean 'relu'"):
        compare(chain(), broken(), batch, nodes=["relo"])


class Fixed:
    """Values that stand for another target's."""

    def __init__(self, **values: torch.Tensor) -> None:
        self.values = values

    def trace(self, batch: object, nodes: object = None) -> dict[str, torch.Tensor]:
        return self.values


@pytest.mark.parametrize(
    ("left", "right", "differs"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), False),
        (torch.tensor([float("-inf")]), torch.tensor([float("-inf")]), False),
        (torch.tensor([float("-inf")]), torch.tensor([0.0]), True),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), True),
        (torch.tensor([1.0]), torch.tensor([1], dtype=torch.uint8), True),
        (torch.tensor([4], dtype=torch.uint8), torch.tensor([5], dtype=torch.uint8), True),
        (torch.tensor([True]), torch.tensor([False]), True),
        (torch.zeros(0, 3), torch.zeros(0, 3), False),
    ],
)
def test_kinds_of_values(left: torch.Tensor, right: torch.Tensor, differs: bool) -> None:
    (row,) = compare(Fixed(n=left), Fixed(n=right), {}).rows
    assert row.differs is differs
    assert str(row)


def test_integers_are_compared_in_steps() -> None:
    left, right = torch.tensor([4], dtype=torch.uint8), torch.tensor([5], dtype=torch.uint8)
    assert compare(Fixed(n=left), Fixed(n=right), {}, steps=1).first is None


def test_truth_values_have_no_steps() -> None:
    left, right = torch.tensor([True, False]), torch.tensor([True, True])
    assert compare(Fixed(n=left), Fixed(n=right), {}, steps=1).first is not None


def test_a_loaded_program_is_traced(tmp_path: Path) -> None:
    program, batch = chain(), {"x": torch.ones(2, 3)}
    loaded = Program.load(program.save(tmp_path / "program"))
    assert trace(loaded, batch).keys() == trace(program, batch).keys()


def test_before_and_after_a_pass() -> None:
    before, batch = shared("bert-cls"), example_batch(2, 6)
    after = Pipeline.parse("magnitude-prune{sparsity=0.5,begin=0,end=0,include='layer.1'}").run(
        before
    )
    found = compare(before, after, batch)
    assert found.first is not None
    assert found.first.op == "aten.linear"
    assert not any(row.differs for row in found.rows if row.node == "layer_norm_2")


def test_trace_restores_the_mode() -> None:
    program = shared("bert-cls").copy().train()
    assert set(trace(program, example_batch(), ["layer_norm"])) == {"layer_norm"}
    assert program.training


class Biased(Target):
    """The reference with a wrong bias in one linear: a target with a fault."""

    name = "biased"

    def lower(self, program: Program) -> ReferenceCompiled:
        wrong = program.copy()
        with torch.no_grad():
            wrong.tensor(FAULT).add_(0.5)
        return Reference(arithmetic="integer").lower(wrong)


FAULT = "bert.encoder.layer.0.intermediate.dense.bias"


def test_fed_with_the_expected_integers_the_reference_agrees_with_itself() -> None:
    program, batch = int8("bert-cls"), example_batch(2, 7)
    reference = Reference(arithmetic="integer")
    found = compare_fed(reference.lower(program), reference, batch, steps=0, tolerance=0.0)
    assert found.first is None, str(found)
    assert [row.node for row in found.rows][-1] == "logits"
    assert len(found.rows) == 18


def test_a_fault_stays_where_it_is_when_values_are_fed() -> None:
    program, batch = int8("bert-cls"), example_batch(2, 7)
    reference = Reference(arithmetic="integer").lower(program)
    found = compare_fed(reference, Biased(), batch)
    wrong = [row.node for row in found.rows if row.differs]
    site = next(s for s in program.facts(QuantizedLinears) if s.bias == FAULT)
    read_by = [u.name for u in site.node.users if "quantize" in str(u.target)]
    assert wrong[: len(read_by)] == read_by
    assert len(wrong) < len(found.rows) / 2


def test_a_program_without_quantized_values_cannot_be_fed() -> None:
    with pytest.raises(SparsefxError, match="no quantized value"):
        feed_quantized(small_program(lambda x: x + 1, x=torch.ones(2)))


def test_a_fed_program_takes_and_returns_each_quantized_value() -> None:
    program = int8("bert-cls")
    fed = feed_quantized(program)
    names = [n.name for n in program.graph.nodes if "sparsefx.quantize" in str(n.target)]
    assert fed.signature.input_names == (
        *program.signature.input_names,
        *(f"fed_{name}" for name in names),
    )
    assert fed.signature.outputs == ("logits", *(f"quantized.{name}" for name in names))
    verify(fed)
