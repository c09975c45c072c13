"""The target reference: both arithmetics, trace, cost, listing, save, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsefx import Program, registry
from sparsefx.backends.reference.integer import accumulate
from sparsefx.backends.reference.target import Reference
from sparsefx.errors import ProgramError, TargetError
from sparsefx.instruments.compare import compare
from sparsefx.passes.analyses.quantized import QuantizedLinears
from tests.int8 import int8
from tests.programs import shared
from tests.tiny_models import example_batch


def test_float_arithmetic_is_the_program() -> None:
    program = shared("bert-cls")
    compiled = registry.parse_target("reference").compile(program)
    with torch.no_grad():
        expected = program(**example_batch(3, 7))
    assert torch.equal(compiled(**example_batch(3, 7))["logits"], expected["logits"])


@pytest.mark.parametrize("options", ["", "{weights='channel',requantize='all'}"])
def test_integer_arithmetic_is_within_one_step_everywhere(options: str) -> None:
    program, batch = int8("bert-cls", options), example_batch(4, 9)
    floats = Reference().lower(program)
    integers = Reference(arithmetic="integer").lower(program)
    found = compare(floats, integers, batch, tolerance=5e-2, steps=1)
    assert found.first is None, str(found)
    expected = floats(**batch)["logits"]
    assert torch.equal(integers(**batch)["logits"].argmax(-1), expected.argmax(-1))


def test_trace_gives_the_integers_of_a_linear() -> None:
    program, batch = int8("bert-cls"), example_batch(2, 5)
    compiled = Reference(arithmetic="integer").lower(program)
    site = program.facts(QuantizedLinears)[5]
    values = compiled.trace(batch, [site.input.name, site.node.name])
    acc = accumulate(
        values[site.input.name],
        program.tensor(site.input_zero_point),
        program.tensor(site.weight),
    )
    assert site.bias is not None
    scale = program.tensor(site.input_scale) * program.tensor(site.weight_scale)
    expected = acc.float() * scale + program.tensor(site.bias)
    assert torch.equal(values[site.node.name], expected)


def test_quantized_linears_are_found_whole() -> None:
    sites = int8("bert-cls").facts(QuantizedLinears)
    assert len(sites) == 14
    assert sum(site.output is not None for site in sites) == 7
    assert shared("bert-cls").facts(QuantizedLinears) == ()


def test_cost_listing_and_save(tmp_path: Path) -> None:
    program = int8("bert-cls")
    compiled = Reference(sequence=16).compile(program)
    cost = compiled.cost()
    assert cost.origin == "measured"
    assert 0.0 < cost.total("seconds") < 5.0
    assert "sequence 16" in cost.notes[0]
    assert "sparsefx.quantize(" in compiled.listing()
    assert Program.load(compiled.save(tmp_path / "saved")).fingerprint() == program.fingerprint()


def test_float_program_is_refused_by_integer_arithmetic() -> None:
    with pytest.raises(TargetError, match="run quantize-prepare and quantize-convert before"):
        Reference(arithmetic="integer").compile(shared("bert-cls"))


def test_bad_options_and_inputs() -> None:
    with pytest.raises(TargetError, match="arithmetic='int4': expected 'float' or 'integer'"):
        Reference(arithmetic="int4")  # type: ignore[arg-type]  # what is tested
    compiled = Reference().compile(shared("bert-cls"))
    with pytest.raises(ProgramError, match="input 'attention_mask' is missing"):
        compiled(input_ids=torch.ones(1, 2, dtype=torch.int64))
