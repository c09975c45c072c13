"""masked-lm, mlm-head and keep-outputs: what is drawn, the loss by hand, and back again."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, SpecError
from sparsefx.graph.ops import draw_masked
from sparsefx.passes.pretrain.masked_lm import DRAW, MaskedLm
from sparsefx.passes.structure.keep_outputs import KeepOutputs
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.tiny_models import VOCABULARY, example_batch, tiny

MASK = "masked-lm{mask_token=4,special=(0,1,2,3)}"


class Guess(nn.Module):
    """The smallest model of tokens: a table and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.table(ids), self.table.weight)


@cache
def classifier() -> Program:
    return sparsefx.capture(tiny("bert-cls"), example_batch())


def run(text: str, program: Program, **programs: Program) -> Program:
    return Pipeline.parse(text).run(program, programs=programs)


def test_draws_follow_80_10_10_and_spare_special_tokens() -> None:
    tokens = torch.arange(1000).repeat(60)
    torch.manual_seed(0)
    drawn = draw_masked(tokens, 0.15, 103, 1000, [0, 101])
    chosen = drawn >= 0
    assert not chosen[torch.isin(tokens, torch.tensor([0, 101]))].any()
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)
    seen, former = drawn[chosen], tokens[chosen]
    masked, same = seen == 103, seen == former
    assert masked.float().mean() == pytest.approx(0.8, abs=0.02)
    assert same.float().mean() == pytest.approx(0.1, abs=0.02)
    assert (~masked & ~same).float().mean() == pytest.approx(0.1, abs=0.02)
    torch.manual_seed(0)
    assert torch.equal(drawn, draw_masked(tokens, 0.15, 103, 1000, [0, 101]))


def test_golden_text() -> None:
    assert_pass(
        MaskedLm(weight=0.5, mask_token=8, special=(0,)),
        small_program(Guess(), ids=torch.ones(2, 3, dtype=torch.int64)),
        """
        %draw_masked = sparsefx.draw_masked(%ids, 0.15, 8, 9, [0])
        %ge = aten.ge.Scalar(%draw_masked, 0)
        %where = aten.where.self(%ge, %draw_masked, %ids)
        %embedding = aten.embedding(%table_weight, %where)
        %linear = aten.linear(%embedding, %table_weight)
        %where_1 = aten.where.ScalarOther(%ge, %ids, -100)
        %flatten = aten.flatten.using_ints(%linear, 0, 1)
        %flatten_1 = aten.flatten.using_ints(%where_1)
        %cross_entropy_loss = aten.cross_entropy_loss(%flatten, %flatten_1, None, 2, -100)
        %ne = aten.ne.Scalar(%flatten_1, -100)
        %sum_1 = aten.sum(%ne)
        %clamp = aten.clamp(%sum_1, 1)
        %div = aten.div.Tensor(%cross_entropy_loss, %clamp)
        %mul = aten.mul.Tensor(%div, 0.5)
        return {output: %linear, loss: %mul, loss.masked_lm: %div}
        """,
        applied=1,
        skipped=[],
    )


def test_loss_by_hand_and_the_way_back() -> None:
    program = sparsefx.capture(tiny("bert-mlm"), example_batch()).eval()
    trained = run(MASK, program)
    batch = example_batch(3, 9)
    torch.manual_seed(3)
    found = trained(**batch)
    torch.manual_seed(3)
    drawn = draw_masked(batch["input_ids"], 0.15, 4, VOCABULARY, [0, 1, 2, 3])
    chosen = drawn >= 0
    shown = torch.where(chosen, drawn, batch["input_ids"])
    logits = program(**{**batch, "input_ids": shown})["logits"]
    expected = F.cross_entropy(logits[chosen], batch["input_ids"][chosen])
    torch.testing.assert_close(found["logits"], logits)
    torch.testing.assert_close(found["loss.masked_lm"], expected)
    back = run("strip-masked-lm", trained)
    assert back.fingerprint() == program.fingerprint()


def test_nothing_chosen_costs_nothing() -> None:
    program = small_program(Guess(), ids=torch.ones(2, 3, dtype=torch.int64))
    trained = run("masked-lm{mask_token=8,special=(1,)}", program)
    assert float(trained(ids=torch.ones(2, 3, dtype=torch.int64))["loss"]) == 0.0


def test_a_classifier_gets_a_head_that_trains_and_goes_again() -> None:
    program = classifier()
    headed = run("mlm-head", program)
    assert headed.signature.outputs == ("logits", "mlm_logits")
    batch = example_batch(3, 9)
    assert_equal_outputs(program.eval(), headed.eval(), batch)
    assert headed.eval()(**batch)["mlm_logits"].shape == (3, 9, VOCABULARY)
    trained = run(MASK.replace("masked-lm{", "masked-lm{probability=1.0,"), headed)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = trained(**batch)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        trained.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    back = run("strip-masked-lm,keep-outputs{outputs=logits}", run(MASK, headed))
    assert back.fingerprint() == program.fingerprint()


def test_a_teacher_that_was_joined_sees_the_same_tokens() -> None:
    student = run("mlm-head,keep-outputs{outputs=mlm_logits}", classifier())
    joined = run(f"distill,{MASK}", student, teacher=student)
    for seed in range(3):
        torch.manual_seed(seed)
        found = joined.eval()(**example_batch(3, 9))
        assert float(found["loss.logits"]) == pytest.approx(0.0, abs=1e-6)
        torch.testing.assert_close(found["loss"], found["loss.logits"] + found["loss.masked_lm"])
    back = run("strip-masked-lm,strip-distillation", joined)
    assert back.fingerprint() == student.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masked-lm{mask_token=4}", "no output predicts tokens; it returns logits"),
        ("mlm-head,masked-lm{mask_token=100}", "mask_token=100 is none of the 100 tokens"),
        ("mlm-head,masked-lm{mask_token=4,special=(1,)}", "the model pads with token 0"),
        ("masked-lm{probability=0.0}", "expected a share above 0"),
        ("masked-lm{weight=0.0}", "expected a number above 0"),
        ("keep-outputs{outputs=logit}", r"there is no output 'logit'(.|\n)*did you mean 'logits'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises((PassError, SpecError), match=message):
        run(text, classifier())


def test_keep_outputs_skips_a_program_without_others() -> None:
    before: Any = small_program(lambda x: {"a": x.relu()}, x=torch.ones(2))
    assert_pass(
        KeepOutputs(outputs=("a",)),
        before,
        "%relu = aten.relu(%x)\nreturn {a: %relu}",
        applied=0,
        skipped=["outputs: it returns no others"],
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "keep-outputs{outputs=logits},"),
        ("distill,", "strip-distillation,"),
        ("", "keep-outputs{outputs=(logits,'loss.masked_lm')},"),
    ],
)
def test_tokens_are_read_again_where_another_pass_dropped_the_loss(before: str, after: str) -> None:
    student = run("mlm-head", classifier())
    back = run(f"{before}{MASK},{after}strip-masked-lm", student, teacher=student)
    assert not back.graph.find_nodes(op="call_function", target=DRAW)
    batch = example_batch(3, 9)
    assert torch.equal(back.eval()(**batch)["logits"], student.eval()(**batch)["logits"])


def test_a_loss_that_holds_the_term_unseen_is_named() -> None:
    with pytest.raises(PassError, match=r"keep-outputs has to keep both loss and loss\.masked_lm"):
        run(f"mlm-head,{MASK},keep-outputs{{outputs=(logits,loss)}},strip-masked-lm", classifier())


def test_what_was_added_to_the_loss_before_and_since_stays() -> None:
    movement, batch = "movement-prune{choice=threshold,penalty=1.0}", example_batch(3, 9)
    student = run("mlm-head", classifier())
    for first, weight in itertools.product(("", "distill,"), ("", ",weight=0.5")):
        masked = MASK.replace("}", f"{weight}}}")
        back = run(f"{first}{masked},{movement},strip-masked-lm", student, teacher=student)
        never = run(f"{first}{movement}", student, teacher=student)
        for program in (back, never):
            program.step()  # from then on the penalty counts
        assert set(back.signature.outputs) == set(never.signature.outputs)
        assert float(back(**batch)["loss"].detach()) > 0.0
        assert_equal_outputs(never.eval(), back.eval(), batch)


def test_hidden_tokens_are_not_for_inference() -> None:
    text = f"mlm-head,{MASK},keep-outputs{{outputs=logits}},simplify{{inference=True}}"
    with pytest.raises(PassError, match=r"draw_masked belongs to training(.|\n)*strip-masked-lm"):
        run(text, classifier())
