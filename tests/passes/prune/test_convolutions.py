"""Pruning of convolutions: the same passes, by the role ``convolution``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, PipelineError
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.testing import assert_pass, small_program

ROLES = ("convolution",)


class Net(nn.Module):
    """A convolution, one for each channel alone, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.relu(self.norm(self.depthwise(self.stem(x)))).mean((2, 3)))
        return found


@pytest.fixture
def plain() -> Program:
    return small_program(Net(), x=torch.randn(4, 2, 6, 6))


def zeros(program: Program, name: str) -> int:
    return int((program.tensor(name) == 0).sum())


def test_before_and_after(plain: Program) -> None:
    lines = Pipeline((MagnitudePrune(0.5, roles=ROLES),)).run(plain).dump().splitlines()
    assert any("aten.conv2d(%x, %mul, %stem_bias)" in line for line in lines)
    assert any("aten.conv2d.padding(" in line and "%mul_1" in line for line in lines)


def test_a_convolution_alone_as_text() -> None:
    program = small_program(nn.Conv2d(1, 2, 2, bias=False), input=torch.ones(1, 1, 3, 3))
    after = """
        %mul = aten.mul.Tensor(%weight, %weight_mask)
        %conv2d = aten.conv2d(%input_1, %mul)
        return {output: %conv2d}
    """
    assert_pass(MagnitudePrune(0.5, roles=ROLES), program, after, applied=1, skipped=[])


def test_roles(plain: Program) -> None:
    roles = plain.facts(EncoderStructure).roles
    assert {name: str(role) for name, role in roles.items()} == {
        "stem.weight": "convolution",
        "depthwise.weight": "convolution",
        "head.weight": "other",
    }


def test_numerics_are_those_of_a_pruned_module(plain: Program) -> None:
    pruned = Pipeline.parse("magnitude-prune{sparsity=0.75,roles=convolution}").run(plain)
    weight = plain.tensor("stem.weight").detach()
    kept = weight.abs() >= weight.abs().flatten().sort().values[-36]
    model = Net().eval()
    model.load_state_dict({name: t.detach() for name, t in pruned.named_tensors().items()
                           if not name.endswith("_mask")})  # fmt: skip
    assert torch.equal(model.stem.weight != 0, kept)
    x = torch.randn(4, 2, 6, 6)
    assert torch.equal(pruned.eval()(x=x)["output"], model(x))


@pytest.mark.parametrize(
    ("pattern", "sparsity", "zero"), [("4x3", 0.5, 72), ("2:3", 1 / 3, 48), ("8x1", 0.5, 72)]
)
def test_patterns_are_those_of_the_matrix(
    plain: Program, pattern: str, sparsity: float, zero: int
) -> None:
    item = MagnitudePrune(sparsity, roles=ROLES, pattern=pattern, include=("stem",))
    pruned = Pipeline((item,)).run(plain)
    mask = pruned.tensor("stem.weight_mask")
    assert mask.shape == (8, 2, 3, 3)
    assert int((mask == 0).sum()) == zero
    if pattern == "4x3":
        blocks = mask.flatten(1).reshape(2, 4, 6, 3)
        assert torch.equal(blocks.amin((1, 3)), blocks.amax((1, 3)))


def test_a_block_that_does_not_fit_is_refused(plain: Program) -> None:
    with pytest.raises((PassError, PipelineError), match="do not divide its shape 8x18"):
        Pipeline.parse("magnitude-prune{roles=convolution,pattern='1x4',include=stem}").run(plain)


def test_encoder_roles_leave_convolutions_alone(plain: Program) -> None:
    unchanged = Pipeline.parse("magnitude-prune{on_no_match=ignore}").run(plain)
    (entry,) = unchanged.history
    assert entry.applied == 0
    reasons = {skip.where: skip.reason for skip in entry.skipped}
    assert "its role convolution is not among roles=encoder" in reasons["stem.weight"]


def test_locked_zeros_survive_training_and_are_found_again(plain: Program) -> None:
    text = "magnitude-prune{sparsity=0.5,roles=convolution,scope=global},pattern-lock"
    program = Pipeline.parse(text).run(plain).train()
    before = {name: zeros(program, name) for name in ("stem.weight", "depthwise.weight")}
    assert sum(before.values()) == (144 + 72) // 2
    optimizer = torch.optim.AdamW(program.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(program(x=torch.randn(4, 2, 6, 6))["output"].square().mean())
        optimizer.step()
        program.step()
    assert {name: zeros(program, name) for name in before} == before
    folded = Pipeline.parse("fold-masks").run(program)
    again = Pipeline.parse("pattern-lock").run(folded)
    assert torch.equal(again.tensor("stem.weight_mask"), program.tensor("stem.weight_mask"))


def test_banks(plain: Program) -> None:
    text = "balance-banks{bank=9,sparsity=0.6666,roles=convolution,include=stem}"
    mask = Pipeline.parse(text).run(plain).tensor("stem.weight_mask")
    assert bool((mask.flatten(1).reshape(8, 2, 9).sum(-1) == 3).all())
