"""distill and strip-distillation: layer maps, every architecture, inputs, errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, PipelineError
from sparsefx.inputs.signature import InputSpec
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.distill.distill import Distill
from sparsefx.passes.distill.fit import check_all
from sparsefx.testing import small_program
from tests.passes.distill.students import ALL, batch, distilled, look, model, program_of
from tests.programs import captured, shared
from tests.tiny_models import ARCHITECTURES, EAGER_ONLY, example_batch

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


def test_cached_states() -> None:
    terms = "logits=1,hidden=1,embedding=1,cls=1,cosine=1"
    program = distilled(f"distill{{{terms},cached=True}}").eval()
    assert not any(name.startswith("teacher.") for name in program.named_tensors())
    (item,) = (each for each in program.active if isinstance(each, Distill))
    given = item.taught(program, program_of(1))
    assert list(given) == [f"teacher_hidden_{place}" for place in range(3)] + ["teacher_logits"]
    taught = look(model(1), batch())
    states = {f"teacher_hidden_{place}": state for place, state in enumerate(taught.hidden)}
    with torch.no_grad():
        found = program(**batch(), **states, teacher_logits=taught.logits)
        expected = distilled(f"distill{{{terms}}}").eval()(**batch())
    for name in ("loss", "loss.hidden", "loss.embedding", "loss.cls", "loss.cosine"):
        torch.testing.assert_close(found[name], expected[name])
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.fingerprint() == program_of().fingerprint()


@dataclass(frozen=True)
class TakesStates(Pass):
    """Adds two inputs that are named as those of distill; an output reads one of them."""

    name: ClassVar[str] = "takes-states"
    changes_signature: ClassVar[bool] = True

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Add them."""
        read, _ = (
            ctx.rewriter.add_input(InputSpec(f"teacher_hidden_{place}", torch.float32, (3, 8)))
            for place in (7, 8)
        )
        with ctx.rewriter.before(program.graph.output_node()):
            twice = ctx.rewriter.call(torch.ops.aten.mul.Tensor, read, 2.0)
        ctx.rewriter.set_output("twice", twice)
        return PassReport(1)


def test_an_input_of_that_name_which_something_else_reads_stays() -> None:
    student = Pipeline((TakesStates(),)).run(program_of())
    program = distilled("distill{logits=0,hidden=1,cached=True}", student)
    assert "teacher_hidden_2" in program.signature.input_names
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.fingerprint() == student.fingerprint()


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


def test_a_teacher_with_the_classes_in_another_order_is_refused() -> None:
    student, teacher = program_of(0).copy(), program_of(1).copy()
    student.config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    teacher.config["id2label"] = {"2": "a", "0": "b", "1": "c"}
    with pytest.raises(PassError, match="teacher's outputs are b, c, a, the student's a, b"):
        distilled("distill", student, teacher)
    distilled("distill{logits=0,hidden=1}", student, teacher)


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(PassError) as caught:
        distilled("distill", without_segments(0), program_of(1, num_labels=2, vocab_size=120))
    assert caught.value.where == "token_type_ids"
    text = str(caught.value)
    assert "the teacher needs the input 'token_type_ids'" in text
    assert "also at input_ids: the teacher has another vocabulary" in text
    assert "also at logits: the teacher has another head" in text
    assert "share one tokenizer" in caught.value.hint


@pytest.mark.parametrize(
    ("hints", "joined"),
    [
        (("", ""), ""),
        (("do x", ""), "do x"),
        (("", "do y"), "b: do y"),
        (("do x", "do y"), "do x; b: do y"),
    ],
)
def test_hints_that_are_empty_leave_no_trace(hints: tuple[str, str], joined: str) -> None:
    def find(where: str, hint: str) -> None:
        raise PassError("no", where=where, hint=hint)

    with pytest.raises(PassError) as caught:
        check_all(lambda: find("a", hints[0]), lambda: find("b", hints[1]))
    assert caught.value.hint == joined


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


def test_a_loss_that_a_pass_put_in_is_told_of_that_pass() -> None:
    program = small_program(nn.Linear(3, 2), input=torch.ones(4, 3))
    with pytest.raises(PassError, match=r"(?s)returns 'loss.l1' already.*distill comes first"):
        Pipeline.parse("reweighted-l1{roles=other},distill").run(
            program, programs={"teacher": program}
        )


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
        ("logits_loss=cross", "expected 'auto', 'kl', 'soft-ce', 'bce', 'mse' or 'cosine'"),
        ("layers=every", "expected 'identity', 'skip', .*'final' or a list of"),
        ("layers=(1,2)", "or a list of"),
        ("teacher_inputs=3", "expected a text or a list of texts"),
        ("cached=True,scores=1", "terms of attention cannot be cached"),
        ("cached=True,teacher_mode=train", "a teacher with dropout gives other values"),
    ],
)
def test_options_are_checked(options: str, message: str) -> None:
    with pytest.raises(sparsefx.errors.SpecError, match=message):
        Pipeline.parse(f"distill{{{options}}}")
