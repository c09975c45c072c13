"""magnitude-prune: the graph it writes, the masks it chooses, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, PipelineError, SpecError
from sparsefx.masks import find_masks
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.tiny_models import example_batch, tiny

OTHER = ("other",)


class TwoLinears(nn.Module):
    """Two linears of different scale, with a gelu between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)
        nn.init.normal_(self.down.weight, std=10.0)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return down


@pytest.fixture
def plain() -> Program:
    return small_program(TwoLinears(), x=torch.randn(4, 8))


@pytest.fixture(scope="module")
def bert() -> Program:
    return sparsefx.capture(tiny("bert-cls"), example_batch())


def run(program: Program, item: MagnitudePrune) -> Program:
    return Pipeline((item,)).run(program)


def zeros(program: Program, name: str) -> float:
    return float((program.tensor(name) == 0).float().mean())


def train(program: Program, steps: int, lr: float = 0.05) -> None:
    """Take optimizer steps that know nothing of masks, with momentum and weight decay."""
    optimizer = torch.optim.AdamW(program.parameters(), lr=lr, weight_decay=0.1)
    for _ in range(steps):
        loss = program(x=torch.randn(4, 8))["output"].square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        program.step()


def test_before_and_after(plain: Program) -> None:
    after = """
        %mul = aten.mul.Tensor(%up_weight, %up_weight_mask)
        %linear = aten.linear(%x, %mul, %up_bias)
        %gelu = aten.gelu(%linear)
        %mul_1 = aten.mul.Tensor(%down_weight, %down_weight_mask)
        %linear_1 = aten.linear(%gelu, %mul_1, %down_bias)
        return {output: %linear_1}
    """
    pruned = assert_pass(MagnitudePrune(0.5, roles=OTHER), plain, after, applied=2, skipped=[])
    assert zeros(pruned, "up.weight") == zeros(pruned, "down.weight") == 0.5


def test_numerics_are_those_of_a_pruned_module(plain: Program) -> None:
    pruned = run(plain, MagnitudePrune(0.75, roles=OTHER))
    model = TwoLinears()
    model.load_state_dict({name: t.detach() for name, t in plain.named_tensors().items()})
    with torch.no_grad():
        for linear in (model.up, model.down):
            kept = linear.weight.numel() // 4
            threshold = linear.weight.abs().flatten().topk(kept).values[-1]
            linear.weight.mul_(linear.weight.abs() >= threshold)
    assert_equal_outputs(
        lambda **batch: {"output": model(**batch)}, pruned, {"x": torch.randn(4, 8)}
    )


def test_no_matrix_no_match() -> None:
    program = small_program(lambda x: torch.relu(x), x=torch.randn(2, 4))
    with pytest.raises(PassError, match="it applied nowhere and found nothing to consider"):
        run(program, MagnitudePrune(0.5, roles=OTHER, on_no_match="error"))


def test_a_matrix_that_is_no_linear_weight_is_skipped() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    program = small_program(Product(), x=torch.randn(4, 4))
    skip = "table: %add does not use it as the weight of a linear, a convolution or an embedding"
    after = "%add = aten.add.Tensor(%x, %table)\nreturn {output: %add}"
    assert_pass(MagnitudePrune(0.5, roles=OTHER), program, after, applied=0, skipped=[skip])


def test_a_weight_that_is_also_an_output_comes_out_masked() -> None:
    class Showing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.dense(x), "weight": self.dense.weight * 1.0}

    program = small_program(Showing(), x=torch.randn(2, 4))
    reason = (
        "dense.weight: %mul does not use it as the weight of a linear, a convolution "
        "or an embedding"
    )
    pruned = run(program, MagnitudePrune(0.5, roles=OTHER))
    assert [str(skip) for skip in pruned.history[-1].skipped] == [reason]


def test_the_encoder_of_a_bert(bert: Program) -> None:
    pruned = run(bert, MagnitudePrune(0.9))
    names = [site.weight for site in find_masks(pruned)]
    assert len(names) == 12
    assert all(name.startswith("bert.encoder.layer.") for name in names)
    for name in names:
        total = pruned.tensor(name).numel()
        assert int((pruned.tensor(name) == 0).sum()) == total - int(total * 0.1)
    skipped = {skip.where: skip.reason for skip in pruned.history[-1].skipped}
    assert skipped["bert.pooler.dense.weight"] == "its role pooler is not among roles=encoder"
    assert skipped["classifier.weight"] == "its role head is not among roles=encoder"
    assert pruned(**example_batch())["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"roles": ("pooler",)}, ["bert.pooler.dense.weight"]),
        ({"roles": ("head", "pooler")}, ["bert.pooler.dense.weight", "classifier.weight"]),
        (
            {"include": r"layer\.1\..*(query|key)"},
            [f"bert.encoder.layer.1.attention.self.{part}.weight" for part in ("query", "key")],
        ),
        (
            {"include": r"layer\.0.*dense", "exclude": ("attention", "intermediate")},
            ["bert.encoder.layer.0.output.dense.weight"],
        ),
    ],
)
def test_selection(bert: Program, options: dict[str, tuple[str, ...]], names: list[str]) -> None:
    pruned = run(bert, MagnitudePrune(0.5, **options))  # type: ignore[arg-type]
    assert [site.weight for site in find_masks(pruned)] == names


def test_an_expression_that_finds_nothing_is_told(bert: Program) -> None:
    pruned = run(bert, MagnitudePrune(0.5, exclude=("layers.0",)))
    assert "exclude='layers.0': it is found in no name" in map(str, pruned.history[-1].skipped)


def test_a_tied_weight_is_pruned_once() -> None:
    program = sparsefx.capture(tiny("bert-mlm"), example_batch())
    pruned = run(program, MagnitudePrune(0.5, roles="embedding", include="decoder"))  # type: ignore[arg-type]
    (site,) = find_masks(pruned)
    assert site.weight == "bert.embeddings.word_embeddings.weight"
    users = {str(user.target) for user in site.product.users}
    assert users == {"aten.embedding.default", "aten.linear.default"}
    assert pruned(**example_batch())["logits"].isfinite().all()


def test_global_scope_prunes_the_smaller_weights_more(plain: Program) -> None:
    pruned = run(plain, MagnitudePrune(0.5, scope="global", roles=OTHER))
    total = sum(int((pruned.tensor(n) == 0).sum()) for n in ("up.weight", "down.weight"))
    assert total == (8 * 16 + 16 * 4) // 2
    assert zeros(pruned, "up.weight") > 0.7 > 0.1 > zeros(pruned, "down.weight")


def test_hard_masks_only_shrink_and_weights_are_zero(plain: Program) -> None:
    program = run(plain, MagnitudePrune(0.8, end=12, frequency=4, roles=OTHER)).train()
    before = program.tensor("up.weight_mask").clone()
    for step in range(1, 16):
        train(program, 1)
        mask = program.tensor("up.weight_mask")
        assert bool((mask <= before).all())
        assert bool((program.tensor("up.weight")[mask == 0] == 0).all())
        if step % 4 or step > 12:
            assert torch.equal(mask, before)
        before = mask.clone()
    assert int(before.sum()) == int(0.2 * 128 + 1e-6)


def test_soft_masks_let_weights_come_back(plain: Program) -> None:
    item = MagnitudePrune(0.5, update_end=10, frequency=5, mask="soft", roles=OTHER)
    program = run(plain, item)
    weight, mask = program.tensor("up.weight"), program.tensor("up.weight_mask")
    assert bool((weight != 0).all())
    dropped = mask == 0
    with torch.no_grad():
        weight[~dropped] *= 1e-6
    for _ in range(4):
        program.step()
        assert torch.equal(mask == 0, dropped)
    program.step()
    assert torch.equal(mask == 0, ~dropped)


def test_a_teacher_in_the_graph_is_left_alone(bert: Program) -> None:
    passes = Pipeline.parse("distill{hidden=1.0},magnitude-prune{sparsity=0.5},pattern-lock")
    joined = passes.run(bert, programs={"teacher": bert})
    assert {site.weight for site in find_masks(joined)} == {
        site.weight for site in find_masks(run(bert, MagnitudePrune(0.5)))
    }
    for name, tensor in joined.named_tensors().items():
        if name.startswith("teacher.") and name.endswith("dense.weight"):
            assert bool((tensor != 0).all())


def test_masked_gradients_are_zero(plain: Program) -> None:
    program = run(plain, MagnitudePrune(0.5, mask="soft", roles=OTHER))
    torch.autograd.backward(program(x=torch.randn(4, 8))["output"].square().mean())
    grad, mask = program.tensor("up.weight").grad, program.tensor("up.weight_mask")
    assert grad is not None
    assert bool((grad[mask == 0] == 0).all())
    assert bool((grad[mask == 1] != 0).any())


def test_the_schedule_counts_from_where_the_pass_ran(plain: Program) -> None:
    plain.steps = 100
    program = run(plain, MagnitudePrune(0.5, begin=2, end=2, roles=OTHER))
    assert str(program.active[0]).endswith("start=100}")
    program.step()
    assert zeros(program, "up.weight") == 0.0
    program.step()
    assert zeros(program, "up.weight") == 0.5


def test_two_passes_keep_to_their_own_masks(plain: Program, tmp_path: Path) -> None:
    first = MagnitudePrune(0.5, begin=1, end=1, roles=OTHER, include=("up",))
    second = MagnitudePrune(0.75, begin=2, end=2, roles=OTHER)
    program = Pipeline((first, second)).run(plain)
    assert "up.weight: it has a mask already" in map(str, program.history[-1].skipped)
    program = Program.load(program.save(tmp_path / "program"))
    program.step()
    assert (zeros(program, "up.weight"), zeros(program, "down.weight")) == (0.5, 0.0)
    program.step()
    assert (zeros(program, "up.weight"), zeros(program, "down.weight")) == (0.5, 0.75)


def test_a_second_run_finds_nothing_left(plain: Program) -> None:
    item = MagnitudePrune(0.5, roles=OTHER, on_no_match="ignore")
    once = run(plain, item)
    twice = run(once, item)
    assert twice.history[-1].applied == 0
    assert not twice.history[-1].changed
    assert twice.active == once.active


@pytest.mark.parametrize("pattern", ["1x4", "4x1", "2:4"])
def test_patterns_in_a_graph(plain: Program, pattern: str) -> None:
    item = MagnitudePrune(0.5, end=4, pattern=pattern, roles=OTHER)
    program = run(plain, item).train()
    train(program, 4)
    mask = program.tensor("up.weight_mask")
    assert float(mask.mean()) == 0.5
    if pattern == "4x1":
        mask = mask.T
    allowed = {2} if pattern == "2:4" else {0, 4}
    assert set(mask.reshape(-1, 4).sum(-1).int().tolist()) <= allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magnitude-prune{sparsity=1.5}", "sparsity=1.5: expected 0 <= sparsity < 1"),
        ("magnitude-prune{sparsity=-0.1}", "sparsity=-0.1: expected 0 <= sparsity < 1"),
        ("magnitude-prune{sparsity=90%}", "'90%' is not a value"),
        ("magnitude-prune{sparsity=0.5,initial_sparsity=0.6}", "expected 0 to sparsity=0.5"),
        ("magnitude-prune{begin=5,end=2}", "end=2: expected a step >= begin=5"),
        ("magnitude-prune{end=9,update_end=3}", "update_end=3: expected a step >= end=9"),
        ("magnitude-prune{frequency=0}", "frequency=0: expected at least 1 step"),
        ("magnitude-prune{exponent=0}", "exponent=0: expected a number > 0"),
        ("magnitude-prune{scope=layer}", "scope='layer': expected 'tensor' or 'global'"),
        ("magnitude-prune{pattern='1y4'}", "pattern='1y4': expected 'unstructured'"),
        ("magnitude-prune{pattern='2:4',scope=global}", "the pattern 2:4 decides in each group"),
        ("magnitude-prune{roles=encodr}", "did you mean 'encoder'?"),
        ("magnitude-prune{include='('}", "include=('(',): not a regular expression"),
    ],
)
def test_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "where", "why"),
    [
        ({"pattern": "1x3"}, "up.weight", "blocks of 1x3 do not divide its shape 16x8"),
        ({"pattern": "3:16", "sparsity": 0.8125}, "up.weight", "groups of 16 do not divide"),
        ({"pattern": "1:4", "sparsity": 0.9}, "up.weight", "1:4 gives a sparsity of 0.75"),
        ({"sparsity": 0.995}, "up.weight", "leaves none of its 128 weights"),
    ],
)
def test_what_cannot_be_reached_names_the_tensor(
    plain: Program, options: dict[str, float], where: str, why: str
) -> None:
    with pytest.raises(PassError) as caught:
        run(plain, MagnitudePrune(**{"roles": OTHER, **options}))  # type: ignore[arg-type]
    assert caught.value.where == where
    assert why in caught.value.why
    assert "exclude='up.weight'" in caught.value.hint


def test_weights_that_are_not_numbers_are_refused(plain: Program) -> None:
    with torch.no_grad():
        plain.tensor("down.weight")[0, 0] = torch.nan
    with pytest.raises(PassError, match=r"at down\.weight: it holds NaN or infinite values"):
        run(plain, MagnitudePrune(0.5, roles=OTHER))


def test_a_locked_program_is_refused(plain: Program) -> None:
    with pytest.raises(PipelineError, match="it cannot run where locked holds"):
        Pipeline.parse("magnitude-prune{roles=other},pattern-lock,magnitude-prune").run(plain)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (MagnitudePrune(roles=OTHER, frequency=10), "frequency: without effect"),
        (
            MagnitudePrune(roles=OTHER, initial_sparsity=0.5, exponent=1.0, begin=3, end=3),
            "initial_sparsity, exponent: without effect, all is pruned at step 3",
        ),
        (MagnitudePrune(roles=OTHER, frequency=10, update_end=20), ""),
        (MagnitudePrune(roles=OTHER, frequency=10, end=20), ""),
    ],
)
def test_options_of_a_ramp_without_a_ramp_are_told(
    plain: Program, item: MagnitudePrune, said: str
) -> None:
    notes = run(plain, item).history[-1].notes[1:]
    assert len(notes) == bool(said)
    assert "".join(notes).startswith(said)


def test_roles_that_no_weight_has_are_told_with_those_that_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(25)])
    run(small_program(layers, input=torch.randn(2, 4)), MagnitudePrune(0.5))
    assert "nowhere:\n  - roles=encoder: no weight has such a role: roles=other takes 25\n" in (
        caplog.text
    )
    assert caplog.text.rstrip().endswith("among roles=encoder\n  and 6 more")
