"""distill and strip-distillation: the losses by hand, every architecture there and back."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, PipelineError
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.distill.distill import Distill
from sparsefx.passes.distill.strip import StripDistillation
from sparsefx.passes.distill.terms import TERMS
from sparsefx.properties import Property
from sparsefx.testing import assert_pass, small_program
from tests.passes.distill.hand_loss import Seen, hand_terms
from tests.programs import captured, shared
from tests.tiny_models import ARCHITECTURES, EAGER_ONLY, example_batch

ALL = ",".join(f"{term}=1.0" for term in TERMS)
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "attn_implementation": "eager",
}


@cache
def model(seed: int = 0, **changed: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(**{**SIZES, "initializer_range": 0.2, "num_labels": 3, **changed})
    made: Any = BertForSequenceClassification(config)
    found: BertForSequenceClassification = made.eval()
    return found


def batch() -> dict[str, Tensor]:
    given = example_batch(3, 9)
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    given["token_type_ids"][:, 4:] = 1
    return given


@cache
def program_of(seed: int = 0, **changed: Any) -> Program:
    # Fixed sizes: shapes are inferred much faster; dynamic ones are tested per architecture.
    return sparsefx.capture(model(seed, **changed), batch(), dynamic=False)


def distilled(text: str, student: Program | None = None, teacher: Program | None = None) -> Program:
    return Pipeline.parse(text).run(
        student or program_of(), programs={"teacher": teacher or program_of(1)}
    )


def look(found: BertForSequenceClassification, given: dict[str, Tensor]) -> Seen:
    """Run an eager model and return what the terms compare."""
    scores: list[Tensor] = []
    values: list[Tensor] = []
    bias = (1 - given["attention_mask"].float())[:, None, None, :] * -1e9

    def hook(attention: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        q, k, v = (
            part(states).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        scores.append(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias)
        values.append(v)

    layers: Any = found.bert.encoder.layer
    handles = [
        layer.attention.self.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers
    ]
    result = found(**given, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return Seen(result.logits, list(result.hidden_states), scores, values)


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
    with pytest.raises(PassError, match="'logits' has one class: its soft targets are always 1"):
        distilled("distill", student, teacher)


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


# -- layers and widths ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("skip", [(0, 1), (1, 3)]),
        ("last", [(0, 2), (1, 3)]),
        ("final", [(1, 3)]),
        ("((0,0),(1,2))", [(0, 0), (1, 2)]),
    ],
)
def test_layer_maps(layers: str, pairs: list[tuple[int, int]]) -> None:
    deep = program_of(1, num_hidden_layers=4)
    program = distilled(f"distill{{logits=0.0,hidden=1.0,layers={layers}}}", teacher=deep).eval()
    with torch.no_grad():
        found = program(**batch())["loss"]
        ours, theirs = look(model(), batch()), look(model(1, num_hidden_layers=4), batch())
    tokens = batch()["attention_mask"].float()
    expected = [
        ((ours.hidden[a + 1] - theirs.hidden[b + 1]).square().mean(-1) * tokens).sum()
        / tokens.sum()
        for a, b in pairs
    ]
    assert torch.allclose(found, torch.stack(expected).sum(), rtol=1e-5)


def test_a_wider_teacher_is_reached_by_a_learned_projection() -> None:
    student, wide = program_of(), program_of(1, hidden_size=48)
    program = distilled("distill{hidden=1.0,embedding=1.0}", teacher=wide).train()
    weight = program.tensor("distill.projection.weight")
    assert weight.shape == (48, 32)
    assert weight.requires_grad
    assert program.facts(EncoderStructure).roles["distill.projection.weight"] is Role.OTHER
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    before = weight.detach().clone()
    torch.autograd.backward(program(**batch())["loss"])
    optimizer.step()
    assert not torch.equal(program.tensor("distill.projection.weight"), before)
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.named_tensors().keys() == student.named_tensors().keys()
    assert stripped.dump() == student.dump()
    again = distilled("distill{hidden=1.0,embedding=1.0}", teacher=wide)
    assert torch.equal(again.tensor("distill.projection.weight"), before)
    for term in ("cls", "cosine"):
        with pytest.raises(PassError, match=f"the {term} term needs equal widths"):
            distilled(f"distill{{{term}=1.0}}", teacher=wide)


# -- every architecture --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_there_and_back_on_every_architecture(name: str) -> None:
    attention = "eager" if name in EAGER_ONLY else "sdpa"
    spelled = Pipeline.parse("decompose-attention{on_no_match='ignore'}")
    student = spelled.run(shared(name, attention))
    teacher = captured(name, attention)
    with torch.no_grad():
        for tensor in teacher.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.02)
    terms = ALL if name in ("bert-qa", "deberta") else "hidden=1.0,embedding=1.0,scores=1.0"
    program = distilled(f"distill{{{terms}}}", student, teacher).train()
    given = example_batch(2, 7)
    for spec in program.signature.inputs:
        if spec.name not in given:
            given[spec.name] = torch.zeros((2, 7)[: len(spec.dims)], dtype=torch.int64)
    found = program(**given)
    torch.autograd.backward(found["loss"])
    assert all(torch.isfinite(value).all() for value in found.values())
    parts = {key: value for key, value in found.items() if key.startswith("loss.")}
    assert all(float(value.detach()) > 0 for value in parts.values()), parts
    back = Pipeline.parse("strip-distillation").run(program.eval())
    assert back.fingerprint() == student.fingerprint()
    assert back.properties == student.properties
    assert back.signature == student.signature


def test_saves_and_loads(tmp_path: Path) -> None:
    program = distilled(f"distill{{{ALL}}}").eval()
    loaded = Program.load(program.save(tmp_path / "distilling"))
    assert loaded.fingerprint() == program.fingerprint()
    stripped = Pipeline.parse("strip-distillation").run(loaded)
    assert stripped.fingerprint() == program_of().fingerprint()


# -- inputs, cached teachers ---------------------------------------------------------------------


def without_segments(seed: int) -> Program:
    given = batch()
    del given["token_type_ids"]
    return sparsefx.capture(model(seed), given, dynamic=False)


def test_a_dropped_input_is_an_error_that_says_how_to_add_it() -> None:
    student = without_segments(0)
    with pytest.raises(PassError) as caught:
        distilled("distill", student)
    text = str(caught.value)
    assert "the teacher needs the input 'token_type_ids', which the student does not take" in text
    assert "distill{teacher_inputs=('token_type_ids',)}" in text
    program = distilled("distill{teacher_inputs=('token_type_ids',)}", student).eval()
    assert program.signature.input_names == ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        expected = distilled("distill").eval()(**batch())["loss"]
        assert program(**batch())["loss"] != expected  # the student reads segment 0 alone
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.fingerprint() == student.fingerprint()


def test_a_teacher_captured_without_segments_is_refused() -> None:
    with pytest.raises(
        PassError, match=r"(?s)2 token types, was captured without it.*capture the tea"
    ):
        distilled("distill", teacher=without_segments(1))


def test_cached_teacher() -> None:
    program = distilled("distill{cached=True,labels=1.0}").eval()
    assert not any(name.startswith("teacher.") for name in program.named_tensors())
    with torch.no_grad():
        taught = program_of(1)(**batch())["logits"]
        labels = torch.tensor([0, 1, 2])
        found = program(**batch(), labels=labels, teacher_logits=taught)
        expected = distilled("distill{labels=1.0}").eval()(**batch(), labels=labels)
    assert torch.equal(found["loss"], expected["loss"])
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.fingerprint() == program_of().fingerprint()


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "changed", "message"),
    [
        ("distill", {"vocab_size": 120}, "another vocabulary: its bert.embeddings.word_embeddings"),
        ("distill", {"num_labels": 2}, "another head: student and teacher return 'logits' of shap"),
        ("distill{hidden=1}", {"num_hidden_layers": 3}, "'identity' does not fit: the student has"),
        ("distill{hidden=1,layers=skip}", {"num_hidden_layers": 3}, "which is no multiple"),
        ("distill{hidden=1,layers=last}", {"num_hidden_layers": 1}, "'last' does not fit"),
        ("distill{hidden=1,layers=((0,5),)}", {}, r"there is no pair \(0, 5\): the student has 2"),
        ("distill{scores=1}", {"num_attention_heads": 2}, "the student has 4, the teacher 2"),
        ("distill{value_relation=1}", {"num_attention_heads": 8}, "equal numbers of heads"),
        ("distill{teacher_inputs=('segment_ids',)}", {}, "which the teacher does not take"),
        ("distill{teacher_inputs=('input_ids',)}", {}, "which the student has already"),
        ("distill{teacher=other}", {}, "the program 'other' was not given"),
    ],
)
def test_teachers_that_do_not_fit(text: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        distilled(text, teacher=program_of(1, **changed))


def test_a_model_that_is_no_encoder() -> None:
    plain = small_program(nn.Linear(3, 2), input=torch.ones(4, 3))
    with pytest.raises(PassError, match=r"not an encoder that sparsefx understands: it has no att"):
        Pipeline.parse("distill{hidden=1.0}").run(plain, programs={"teacher": plain})


class WithLoss(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x * 2.0, "loss": x.sum()}


def test_a_student_that_returns_a_loss_is_refused() -> None:
    program = small_program(WithLoss(), x=torch.ones(4, 3))
    with pytest.raises(PassError, match=r"(?s)returns 'loss' already.*capture it without labels"):
        Pipeline.parse("distill").run(program, programs={"teacher": program})


def test_inputs_of_another_type_are_refused() -> None:
    ints = small_program(nn.Embedding(9, 2), input=torch.ones(4, 3, dtype=torch.int64))
    floats = small_program(nn.Linear(3, 2), input=torch.ones(4, 3))
    with pytest.raises(PassError, match=r"the teacher takes input: float32\[4, 3\], the student"):
        Pipeline.parse("distill").run(ints, programs={"teacher": floats})


def test_twice_is_refused_and_strip_needs_a_distillation() -> None:
    program = distilled("distill")
    with pytest.raises(PipelineError, match="cannot run where distilling holds"):
        distilled("distill", program)
    with pytest.raises(PipelineError, match="requires distilling"):
        Pipeline.parse("strip-distillation").run(program_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("logits=0", "no term has a weight above 0"),
        ("hidden=-1.0", "expected a weight of 0 or more"),
        ("hidden='much'", "expected a number"),
        ("temperature=0", "temperature=0: expected a number above 0"),
        ("logits_loss=cross", "expected one of kl, soft-ce, mse"),
        ("layers=every", "expected one of identity, skip, last, final, or pairs"),
        ("layers=(1,2)", "a tuple of"),
        ("teacher_inputs='x'", "expected a tuple of names"),
        ("cached=True,hidden=1", "only the logits term can be cached"),
    ],
)
def test_options_are_checked(options: str, message: str) -> None:
    with pytest.raises(sparsefx.errors.SpecError, match=message):
        Pipeline.parse(f"distill{{{options}}}")


@pytest.mark.parametrize("loss", ["kl", "soft-ce"])
def test_soft_targets_are_not_rounded_under_autocast(loss: Literal["kl", "soft-ce"]) -> None:
    """In bf16 a small divergence would vanish, or come out below 0."""

    head = nn.Linear(8, 2)
    other = copy.deepcopy(head)
    with torch.no_grad():
        other.bias.add_(torch.tensor([0.06, -0.06]))
    x = torch.randn(16, 8)
    student, teacher = (small_program(each, input=x) for each in (head, other))
    distill = Distill(temperature=1.0, logits_loss=loss)
    joined = Pipeline((distill,)).run(student, programs={"teacher": teacher})
    expected = float(joined(input=x)["loss"])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = joined(input=x)["loss"]
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(expected, rel=0.3 if loss == "kl" else 0.003)
