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
def uneven(name: str, prune: str = "magnitude-prune{sparsity=0.8},fold-masks") -> Program:
    """Rows and columns of very different scales, then pruned."""
    program = captured(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in program.named_tensors().values():
            if tensor.dim() == 2 and tensor.shape[1] in (64, 128):
                rows = torch.rand(tensor.shape[0], 1, generator=generator) * 2 - 1
                columns = torch.rand(1, tensor.shape[1], generator=generator) * 2 - 1
                tensor.mul_(rows.exp() * columns.exp())
    return Pipeline.parse(prune).run(program)


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


def kept(program: Program, name: str) -> torch.Tensor:
    return (program.tensor(name) * program.tensor(f"{name}_mask")) != 0


@pytest.mark.parametrize(
    ("prune", "group", "block"),
    [
        ("magnitude-prune{pattern='2:4',sparsity=0.5}", 4, 1),
        ("magnitude-prune{pattern='1:4',sparsity=0.75,mask=soft}", 4, 1),
        ("balance-banks{sparsity=0.8,bank=32}", 32, 2),
    ],
)
def test_groups_stay_equally_full(prune: str, group: int, block: int) -> None:
    def counts(program: Program, weight: str) -> set[int]:
        return set(kept(program, weight).unfold(1, group, group).sum(dim=2).flatten().tolist())

    before = uneven("bert-cls", prune)
    spec = f"permute-rows{{elements=2,block={block},on_no_match=ignore}}"
    after = Pipeline.parse(spec).run(before)
    weights = [name.removesuffix("_mask") for name in before.named_tensors() if "_mask" in name]
    for weight in weights:
        assert counts(after, weight) == counts(before, weight), weight
    reasons = {skip.reason.partition("without ")[2] for skip in after.history[-1].skipped}
    assert f"tearing equally full groups of {group}" in reasons


@pytest.mark.parametrize("block", ["1x4", "4x1", "4x4"])
def test_blocks_move_whole(block: str) -> None:
    rows, columns = (int(part) for part in block.split("x"))
    before = uneven("bert-cls", f"magnitude-prune{{pattern='{block}',sparsity=0.8}}")
    after = Pipeline.parse(SPEC).run(before)
    assert after.history[-1].applied > 0
    for name in before.named_tensors():
        if not name.endswith("_mask"):
            continue
        tiles = kept(after, name.removesuffix("_mask")).unfold(0, rows, rows)
        sizes = tiles.unfold(1, columns, columns).sum(dim=(2, 3))
        assert set(sizes.flatten().tolist()) <= {0, rows * columns}, name


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
