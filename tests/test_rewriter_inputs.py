"""Rewriter.add_input and remove_input."""

from __future__ import annotations

import pytest
import torch

from sparsefx import Program
from sparsefx.errors import ProgramError
from sparsefx.inputs.signature import InputSpec
from sparsefx.rewrite import Rewriter
from tests.programs import captured
from tests.tiny_models import example_batch

aten = torch.ops.aten


def with_weights() -> tuple[Program, Rewriter]:
    program = captured("handwritten")
    rewriter = Rewriter(program, "test")
    weights = rewriter.add_input(InputSpec("weights", torch.float32, ("batch", 1)))
    with rewriter.before(program.graph.output_node()):
        scaled = rewriter.call(aten.mul.Tensor, program.outputs()["output"], weights)
    rewriter.set_output("scaled", scaled)
    rewriter.finish()
    return program, rewriter


def test_an_added_input_is_taken_and_its_shape_is_known() -> None:
    program, _ = with_weights()
    assert program.signature.input_names == ("input_ids", "attention_mask", "weights")
    fact = program.shape_of(program.outputs()["scaled"])
    assert fact is not None
    assert fact.dims == ("batch", 2)
    weights = torch.tensor([[2.0], [0.5]])
    with torch.no_grad():
        found = program(**example_batch(), weights=weights)
    assert torch.equal(found["scaled"], found["output"] * weights)


def test_a_removed_input_is_gone() -> None:
    program, rewriter = with_weights()
    scaled = program.outputs()["scaled"]
    rewriter.drop_output("scaled")
    rewriter.erase(scaled)
    rewriter.remove_input("weights")
    rewriter.finish()
    assert program.fingerprint() == captured("handwritten").fingerprint()


def test_what_does_not_fit_is_refused() -> None:
    program, rewriter = with_weights()
    with pytest.raises(ProgramError, match="there is an input 'weights' already"):
        rewriter.add_input(InputSpec("weights", torch.float32, ("batch", 1)))
    with pytest.raises(ProgramError, match="no other input has the dynamic dimension 'pixels'"):
        rewriter.add_input(InputSpec("image", torch.float32, ("batch", "pixels")))
    with pytest.raises(ProgramError, match="it is still used by %mul"):
        rewriter.remove_input("weights")
    assert program.signature.input_names[-1] == "weights"
