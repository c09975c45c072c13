"""distill: the losses by hand, golden text, the teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.distill.distill import Distill
from sparsefx.passes.distill.strip import StripDistillation
from sparsefx.passes.distill.terms import TERMS
from sparsefx.properties import Property
from sparsefx.testing import assert_pass, small_program
from tests.passes.distill.hand_loss import hand_terms
from tests.passes.distill.students import ALL, SIZES, batch, distilled, look, model, program_of


@pytest.mark.parametrize("mask_padding", [True, False])
def test_every_term_equals_the_loss_by_hand(*, mask_padding: bool) -> None:
    program = distilled(f"distill{{{ALL},temperature=3.0,mask_padding={mask_padding}}}").eval()
    given, labels = batch(), torch.tensor([0, 2, 1])
    tokens = given["attention_mask"].float() if mask_padding else None
    with torch.no_grad():
        found = program(**given, labels=labels)
        ours, theirs = (look(model(seed), given) for seed in (0, 1))
        expected = hand_terms(ours, theirs, labels, tokens, [(0, 0), (1, 1)], 3.0)
    assert expected.keys() == TERMS.keys()
    for name, value in expected.items():
        assert float(found[f"loss.{name}"]) == pytest.approx(float(value), rel=2e-5), name
        assert float(value) > 1e-4
    assert float(found["loss"]) == pytest.approx(float(sum(expected.values())), rel=2e-5)


def test_a_batch_of_padding_alone_gives_finite_losses() -> None:
    program = distilled(f"distill{{{ALL}}}").train()
    given = batch()
    given["attention_mask"].zero_()
    labels = torch.full((3,), -100)
    found = program(**given, labels=labels)
    torch.autograd.backward(found["loss"])
    losses = {name: value for name, value in found.items() if name.startswith("loss")}
    assert all(bool(value.isfinite()) for value in losses.values())
    assert losses["loss.hidden"].item() == 0
    gradients = [each.grad for each in program.parameters() if each.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_weights_scale_the_sum_and_not_the_parts() -> None:
    program = distilled("distill{logits=0.25,hidden=2.0}").eval()
    found = program(**batch())
    expected = 0.25 * found["loss.logits"] + 2.0 * found["loss.hidden"]
    assert torch.allclose(found["loss"], expected)
    assert tuple(found) == ("logits", "loss", "loss.logits", "loss.hidden")


def test_gradients_equal_the_loss_by_hand() -> None:
    program = distilled(f"distill{{{ALL}}}").eval()
    given, labels = batch(), torch.tensor([0, 2, 1])
    torch.autograd.backward(program(**given, labels=labels)["loss"])
    made: Any = BertForSequenceClassification(model().config)
    student = made.eval()
    student.load_state_dict(model().state_dict())
    with torch.no_grad():
        teacher = look(model(1), given)
    tokens = given["attention_mask"].float()
    terms = hand_terms(look(student, given), teacher, labels, tokens, [(0, 0), (1, 1)], 2.0)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        found = program.tensor(name).grad
        assert found is not None
        assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-4), name


def test_sparsebert_logits_are_a_mean_over_batch_and_classes() -> None:
    text = "distill{logits_loss='soft-ce',logits_mean='batch-and-classes',temperature=1.0}"
    with torch.no_grad():
        found = distilled(text).eval()(**batch())["loss"]
        ours, theirs = (model(seed)(**batch()).logits for seed in (0, 1))
    expected = -(theirs.softmax(-1) * ours.log_softmax(-1)).mean()
    assert torch.allclose(found, expected, rtol=1e-5)


def test_probabilities_by_mean_squared_error() -> None:
    text = "distill{logits=0.0,probabilities=1.0,probabilities_loss='mse',mask_padding=False}"
    with torch.no_grad():
        found = distilled(text).eval()(**batch())["loss"]
        ours, theirs = (look(model(seed), batch()).scores for seed in (0, 1))
    parts = [
        (a.softmax(-1) - b.softmax(-1)).square().mean() for a, b in zip(ours, theirs, strict=True)
    ]
    assert torch.allclose(found, torch.stack(parts).sum(), rtol=1e-5)


def test_regression_takes_squared_errors() -> None:
    student, teacher = program_of(num_labels=1), program_of(1, num_labels=1)
    text = "distill{labels=1.0,logits_loss='mse'}"
    program = distilled(text, student, teacher).eval()
    values = torch.tensor([0.5, 2.0, -1.0])
    with torch.no_grad():
        found = program(**batch(), labels=values)
        theirs = teacher(**batch())["logits"]
    ours = found["logits"]
    assert torch.allclose(found["loss.labels"], (ours.squeeze(-1) - values).square().mean())
    assert torch.allclose(found["loss.logits"], (ours - theirs).square().mean())
    chosen = distilled("distill{labels=1.0}", student, teacher)
    assert chosen.history[-1].notes == (
        "logits: one value and no classes, so logits_loss is 'mse'",
    )
    with torch.no_grad():
        assert torch.equal(chosen.eval()(**batch(), labels=values)["loss"], found["loss"])
    with pytest.raises(PassError, match="'logits' has one class: its soft targets are always 1"):
        distilled("distill{logits_loss='kl'}", student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_any_number_of_classes_are_compared_one_by_one(temperature: float) -> None:
    student, teacher = (program_of(seed).copy() for seed in (0, 1))
    student.config["problem_type"] = "multi_label_classification"
    program = distilled(f"distill{{temperature={temperature}}}", student, teacher).eval()
    assert program.history[-1].notes == (
        "a text has any number of classes, so logits_loss is 'bce'",
    )
    with torch.no_grad():
        found = program(**batch())
        theirs = teacher(**batch())["logits"] / temperature
    ours = found["logits"] / temperature
    each = nn.functional.binary_cross_entropy_with_logits(ours, theirs.sigmoid(), reduction="none")
    assert torch.allclose(found["loss"], temperature**2 * each.sum(-1).mean())
    with pytest.raises(PassError, match="the labels term compares with one class"):
        distilled("distill{labels=1.0}", student, teacher)


def test_an_example_without_a_value_does_not_count() -> None:
    program = distilled(
        "distill{labels=1.0}", program_of(num_labels=1), program_of(1, num_labels=1)
    )
    values, known = torch.tensor([0.5, torch.nan, -1.0]), torch.tensor([0, 2])
    found = program.eval()(**batch(), labels=values)
    ours = found["logits"].squeeze(-1)
    expected = (ours - values)[known].square().mean()
    assert torch.allclose(found["loss.labels"], expected)
    torch.autograd.backward(found["loss"])
    assert all(each.grad.isfinite().all() for each in program.parameters() if each.grad is not None)
    none = program(**batch(), labels=torch.full((3,), torch.nan))
    assert none["loss.labels"].item() == 0


def token_program(seed: int) -> Program:
    torch.manual_seed(seed)
    config = BertConfig(**{**SIZES, "num_labels": 5, "initializer_range": 0.2})
    made: Any = BertForTokenClassification(config)
    return sparsefx.capture(made.eval(), batch(), dynamic=False)


def test_token_outputs_count_real_tokens_only() -> None:
    student, teacher = token_program(0), token_program(1)
    program = distilled("distill{labels=1.0}", student, teacher).eval()
    labels = torch.randint(5, (3, 9)).masked_fill(batch()["attention_mask"] == 0, -100)
    with torch.no_grad():
        found = program(**batch(), labels=labels)
        theirs = teacher(**batch())["logits"]
    real = batch()["attention_mask"].bool()
    ours, theirs = found["logits"][real] / 2, theirs[real] / 2
    kl = nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    assert torch.allclose(found["loss.logits"], 4 * kl, rtol=1e-5)
    hard = nn.functional.cross_entropy(found["logits"][real], labels[real])
    assert torch.allclose(found["loss.labels"], hard, rtol=1e-5)


def test_examples_without_labels_do_not_count() -> None:
    program = distilled("distill{labels=1.0,logits=0.0}").eval()
    labels = torch.tensor([2, -100, 1])
    found = program(**batch(), labels=labels)
    expected = nn.functional.cross_entropy(found["logits"][[0, 2]], labels[[0, 2]])
    assert torch.allclose(found["loss"], expected)
    nothing = program(**batch(), labels=torch.full((3,), -100))
    assert nothing["loss"].detach() == 0.0
    assert not any(name.startswith("teacher.") for name in program.named_tensors())


# -- golden text ---------------------------------------------------------------------------------


def test_golden_text() -> None:
    student, teacher = (small_program(nn.Linear(3, 2), input=torch.ones(4, 3)) for _ in "st")
    after = assert_pass(
        Distill(labels=0.5),
        student,
        """
        %linear = aten.linear(%input_1, %weight, %bias)
        %linear_1 = aten.linear(%input_1, %teacher_weight, %teacher_bias)
        %div = aten.div.Tensor(%linear, 2.0)
        %log_softmax = aten.log_softmax.int(%div, -1, float32)
        %div_1 = aten.div.Tensor(%linear_1, 2.0)
        %log_softmax_1 = aten.log_softmax.int(%div_1, -1, float32)
        %kl_div = aten.kl_div(%log_softmax, %log_softmax_1, 0, log_target=True)
        %sum_1 = aten.sum.dim_IntList(%kl_div, [-1])
        %mean = aten.mean(%sum_1)
        %mul = aten.mul.Tensor(%mean, 4.0)
        %cross_entropy_loss = aten.cross_entropy_loss(%linear, %labels, None, 2, -100)
        %ne = aten.ne.Scalar(%labels, -100)
        %sum_2 = aten.sum(%ne)
        %clamp = aten.clamp(%sum_2, 1)
        %div_2 = aten.div.Tensor(%cross_entropy_loss, %clamp)
        %mul_1 = aten.mul.Tensor(%div_2, 0.5)
        %add = aten.add.Tensor(%mul, %mul_1)
        return {output: %linear, loss: %add, loss.logits: %mul, loss.labels: %div_2}
        """,
        applied=2,
        skipped=[],
        programs={"teacher": teacher},
    )
    assert after.properties == {Property.DISTILLING}
    assert after.signature.input_names == ("input", "labels")
    assert "active: distill{labels=0.5}" in after.dump()
    assert_pass(
        StripDistillation(),
        after,
        """
        %linear = aten.linear(%input_1, %weight, %bias)
        return {output: %linear}
        """,
        applied=3,
    )


# -- the teacher ---------------------------------------------------------------------------------


def test_the_teacher_is_frozen_and_outside_autograd() -> None:
    program = distilled(f"distill{{{ALL}}}").train()
    trained = dict(program.module.named_parameters())
    assert not any(name.startswith("teacher.") for name in trained)
    assert trained.keys() == dict(program_of().module.named_parameters()).keys()
    teacher = {n: t for n, t in program.named_tensors().items() if n.startswith("teacher.")}
    before = {name: tensor.clone() for name, tensor in teacher.items()}
    optimizer = torch.optim.AdamW(program.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(program(**batch(), labels=torch.tensor([0, 1, 2]))["loss"])
        optimizer.step()
        program.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.items())
    assert all(tensor.grad is None for tensor in teacher.values())


def test_training_lowers_the_loss_and_strip_keeps_what_was_learned() -> None:
    student = program_of()
    program = distilled("distill{hidden=1.0}", student).train()
    optimizer = torch.optim.AdamW(program.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = program(**batch())["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        program.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.dump() == student.dump()
    assert stripped.fingerprint() != student.fingerprint()
    with torch.no_grad():
        expected = program.eval()(**batch())["logits"]
        assert torch.equal(stripped.eval()(**batch())["logits"], expected)


def test_teacher_mode() -> None:
    quiet, noisy = (
        distilled(f"distill{{teacher_mode='{mode}',logits_loss='mse'}}").train()
        for mode in ("eval", "train")
    )
    dropouts = [
        sum("dropout" in str(node.target) for node in program.graph.nodes)
        for program in (program_of(), quiet, noisy)
    ]
    assert dropouts[1] == dropouts[0]
    assert dropouts[2] == 2 * dropouts[0]
    with torch.no_grad():
        assert torch.equal(quiet.eval()(**batch())["loss"], noisy.eval()(**batch())["loss"])


def test_only_what_a_term_needs_is_joined() -> None:
    program = distilled("distill{logits=0.0,hidden=1.0,layers=((1,0),)}")
    joined = {n for n in program.named_tensors() if n.startswith("teacher.")}
    assert not any(".layer.1." in name or "classifier" in name for name in joined)
    assert any(".layer.0." in name for name in joined)


def test_the_analysis_sees_the_student_alone() -> None:
    program, student = distilled(f"distill{{{ALL}}}"), program_of()
    after, before = (p.facts(EncoderStructure) for p in (program, student))
    assert after.roles == before.roles
    assert [layer.hidden.name for layer in after.layers] == [n.hidden.name for n in before.layers]


def test_fused_attention_of_the_teacher_is_spelled_out_when_needed() -> None:
    teacher = sparsefx.capture(tiny_sdpa(), batch(), dynamic=False)
    program = distilled("distill{scores=1.0}", teacher=teacher).eval()
    same = distilled("distill{scores=1.0}").eval()
    with torch.no_grad():
        assert torch.allclose(program(**batch())["loss"], same(**batch())["loss"], rtol=1e-4)
    with pytest.raises(PassError, match=r"(?s)attention is fused.*run decompose-attention before"):
        distilled("distill{scores=1.0}", student=teacher)


def tiny_sdpa() -> nn.Module:
    config = BertConfig(**{**model(1).config.to_dict(), "attn_implementation": "sdpa"})
    made: Any = BertForSequenceClassification(config)
    made.load_state_dict(model(1).state_dict())
    found: nn.Module = made.eval()
    return found
