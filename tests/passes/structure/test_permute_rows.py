"""permute-rows: the same function, fewer lock-step cycles."""

import functools

import pytest
import torch

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.passes.structure.permute_rows import PermuteRows, lock_step_cost
from tests.programs import captured
from tests.tiny_models import example_batch

SPEC = "permute-rows{elements=8,block=16}"


@functools.cache
def uneven(name: str) -> Program:
    """Rows and columns of very different scales, then pruned by magnitude and folded."""
    program = captured(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in program.named_tensors().values():
            if tensor.dim() == 2 and tensor.shape[1] in (64, 128):
                rows = torch.rand(tensor.shape[0], 1, generator=generator) * 2 - 1
                columns = torch.rand(1, tensor.shape[1], generator=generator) * 2 - 1
                tensor.mul_(rows.exp() * columns.exp())
    return Pipeline.parse("magnitude-prune{sparsity=0.8},fold-masks").run(program)


@pytest.mark.parametrize("name", ["bert-cls", "distilbert", "roberta", "electra", "albert"])
def test_the_function_is_the_same(name: str) -> None:
    before = uneven(name).copy().eval()
    after = Pipeline.parse(SPEC).run(before).eval()
    assert after.history[-1].applied > 0
    batch = example_batch(2, 8)
    batch = {key: batch[key] for key in before.signature.input_names}
    with torch.no_grad():
        old, new = before(**batch), after(**batch)
    for key, value in old.items():
        assert torch.allclose(value, new[key], atol=1e-5), key


def test_lock_step_cycles_fall_and_are_told() -> None:
    after = Pipeline.parse(SPEC).run(uneven("bert-cls"))
    (note,) = after.history[-1].notes
    old, new = (
        int(part.replace(",", "")) for part in note.split(": ")[1].split(" (")[0].split(" to ")
    )
    assert new < old


def test_integer_weights_move_with_their_scales() -> None:
    program = Pipeline.parse("quantize-prepare").run(uneven("bert-cls"))
    calibrate(program, [example_batch(4, 8)])
    before = Pipeline.parse("quantize-convert").run(program).eval()
    after = Pipeline.parse(SPEC).run(before).eval()
    assert after.history[-1].applied > 0
    batch = example_batch(2, 8)
    with torch.no_grad():
        assert torch.allclose(before(**batch)["logits"], after(**batch)["logits"], atol=2e-2)


def test_a_dense_program_is_left_as_it_is() -> None:
    before = captured("bert-cls")
    after = Pipeline.parse("permute-rows{on_no_match=ignore}").run(before)
    assert after.fingerprint() == before.fingerprint()
    assert all("no order by count" in skip.reason for skip in after.history[-1].skipped)


def test_cost_is_the_sum_of_the_fullest_rows() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert lock_step_cost(mask, 2, 2) == (2 + 1) + (2 + 2)


def test_options_are_checked() -> None:
    with pytest.raises(PassError, match="elements=0: expected at least 1"):
        PermuteRows(elements=0)
