"""distill{outputs=...}: which heads are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.distill.distill import Distill
from sparsefx.train.data.batches import Encoded
from sparsefx.train.taught import with_teacher
from tests.passes.distill.students import SIZES, batch, program_of

HEADED = "mlm-head{seed=%d}"


def headed(seed: int) -> Program:
    return Pipeline.parse(HEADED % seed).run(program_of(seed))


def test_only_the_named_heads_are_compared() -> None:
    given = batch()
    found = {}
    for names in ("logits", "mlm_logits", "('logits','mlm_logits')"):
        joined = Pipeline.parse(f"distill{{outputs={names},temperature=1.0}}").run(
            headed(0), programs={"teacher": headed(1)}
        )
        with torch.no_grad():
            found[names] = float(joined.eval()(**given)["loss"])
    both = found.pop("('logits','mlm_logits')")
    assert both == pytest.approx(sum(found.values()) / 2, rel=1e-5)
    assert found["logits"] != pytest.approx(found["mlm_logits"], rel=1e-3)


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(PassError, match="the student has no output 'mlm_logits' to compare"):
        Pipeline.parse("distill{outputs=mlm_logits}").run(
            program_of(0), programs={"teacher": program_of(1)}
        )


class Scores(nn.Module):
    """Says of a text a value [batch] and the same [batch, 1], and classes [batch, 5]."""

    def __init__(self, seed: int, *names: str) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.score, self.classes = (
            nn.Embedding(12, 8),
            nn.Linear(8, 1),
            nn.Linear(8, 5),
        )
        self.names = names

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        mean = self.embedding(input_ids).mean(1)
        found = {
            "score": self.score(mean).squeeze(-1),
            "column": self.score(mean),
            "logits": self.classes(mean),
            "best": self.classes(mean).argmax(-1),
        }
        return {name: found[name] for name in self.names}


IDS = torch.arange(12).reshape(3, 4)


def scoring(seed: int, *names: str) -> Program:
    return sparsefx.capture(Scores(seed, *names), {"input_ids": IDS})


def taught(text: str, *names: str) -> Program:
    return Pipeline.parse(text).run(scoring(0, *names), programs={"teacher": scoring(1, *names)})


@pytest.mark.parametrize(
    ("text", "names"),
    [("distill", ["score"]), ("distill{outputs=score}", ["score", "logits"])],
)
def test_values_without_a_last_dimension_are_compared(text: str, names: list[str]) -> None:
    program = taught(text, *names).eval()
    with torch.no_grad():
        ours, theirs = (Scores(seed, "score")(IDS)["score"] for seed in (0, 1))
        found = program(input_ids=IDS)["loss"]
    assert torch.allclose(found, (ours - theirs).square().mean())
    assert "score: one value and no classes, so logits_loss is 'mse'" in program.history[-1].notes
    stripped = Pipeline.parse("strip-distillation").run(program)
    assert stripped.fingerprint() == scoring(0, *names).fingerprint()


@pytest.mark.parametrize(("student", "teacher"), [("score", "column"), ("column", "score")])
@pytest.mark.parametrize("cached", [True, False])
def test_values_are_compared_with_and_without_a_last_dimension(
    student: str, teacher: str, cached: bool, tmp_path: Path
) -> None:
    mine, other = scoring(0, student), scoring(1, teacher).eval()
    text = f"distill{{cached={cached}}}"
    program = Pipeline.parse(text).run(mine, programs={"teacher": other}).eval()
    data = Encoded(tuple(row.numpy() for row in IDS), None, None, pad=0)
    if cached:
        data = with_teacher(program, other, data, 2, tmp_path, bf16=False)
    with torch.no_grad():
        ours, theirs = (Scores(seed, "score")(IDS)["score"] for seed in (0, 1))
        given = data.collate([0, 1, 2])
        found = program(**{name: given[name] for name in program.signature.input_names})["loss"]
    assert torch.allclose(found, (ours - theirs).square().mean())


def test_values_are_held_to_labels_of_their_shape() -> None:
    program = taught("distill{logits=0,labels=1}", "score").eval()
    labels = torch.tensor([1.0, torch.nan, 3.0])
    with torch.no_grad():
        found = program(input_ids=IDS, labels=labels)["loss"]
        ours = Scores(0, "score")(IDS)["score"]
    assert torch.allclose(found, (ours - labels)[[0, 2]].square().mean())


def test_what_is_left_out_is_noted() -> None:
    program = taught("distill", "score", "logits")
    assert "score: not compared; outputs=... chooses what is" in program.history[-1].notes
    assert not taught("distill{outputs=logits}", "score", "logits").history[-1].notes


@pytest.mark.parametrize(
    ("text", "names", "why"),
    [
        (
            "distill{outputs=best}",
            ("best", "score"),
            r"the output 'best' \(int64\[batch\]\) cannot",
        ),
        ("distill", ("best",), r"no floating-point output to compare: it returns 'best' \(int64"),
        ("distill{logits_loss=kl}", ("score",), "'score' has one class"),
    ],
)
def test_why_nothing_can_be_compared(text: str, names: tuple[str, ...], why: str) -> None:
    with pytest.raises(PassError, match=why):
        taught(text, *names)


def test_values_of_a_teacher_come_beforehand(tmp_path: Path) -> None:
    student, teacher = taught("distill{cached=True}", "score").eval(), scoring(1, "score").eval()
    data = Encoded(tuple(row.numpy() for row in IDS), None, None, pad=0)
    found = with_teacher(student, teacher, data, 2, tmp_path, bf16=False)
    with torch.no_grad():
        assert torch.allclose(
            found.collate([2, 0])["teacher_score"], teacher(input_ids=IDS[[2, 0]])["score"]
        )


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        ("distill{logits_loss='mse',temperature=4.0}", ("temperature",)),
        (
            "distill{logits=0,labels=1,temperature=4.0,logits_loss='kl'}",
            ("temperature", "logits_loss"),
        ),
        ("distill{layers='final',normalise_cls=False}", ("normalise_cls", "layers")),
        ("distill{temperature=4.0,logits_mean='batch-and-classes'}", ()),
        ("distill{logits_loss='mse'}", ()),
        ("distill{hidden=1,layers='final'}", ()),
    ],
)
def test_an_option_that_no_term_reads_is_noted(text: str, idle: tuple[str, ...]) -> None:
    (item,) = Pipeline.parse(text).passes
    assert isinstance(item, Distill)
    assert item.idle == idle


def test_idle_options_reach_the_report() -> None:
    notes = taught("distill{logits_loss='mse',temperature=4.0}", "logits").history[-1].notes
    assert "temperature: no term that is on reads it" in notes


def answers(seed: int) -> tuple[Any, Program]:
    torch.manual_seed(seed)
    model: Any = BertForQuestionAnswering(BertConfig(**{**SIZES, "initializer_range": 0.2}))
    return model, sparsefx.capture(model.eval(), batch())


@pytest.mark.parametrize("loss", ["kl", "soft-ce", "mse"])
def test_an_answer_is_looked_for_among_tokens_alone(loss: str) -> None:
    """However far a batch is padded, as classes are positions here."""
    (eager, student), (other, teacher) = answers(0), answers(1)
    text = f"distill{{logits=1,temperature=2.0,logits_loss={loss}}}"
    joined = Pipeline.parse(text).run(student, programs={"teacher": teacher}).eval()
    given = batch()
    padded = {name: nn.functional.pad(value, (0, 7)) for name, value in given.items()}
    known = given["attention_mask"] != 0
    assert not bool(known.all())
    parts = []
    with torch.no_grad():
        found = [float(joined(**each)["loss"]) for each in (given, padded)]
        for name in ("start_logits", "end_logits"):
            for ours, theirs, real in zip(
                eager(**given)[name], other(**given)[name], known, strict=True
            ):
                parts.append(by_hand(loss, ours[real], theirs[real]))
    if loss == "mse":
        total = sum(float(part.sum()) for part in parts) / (2 * int(known.sum()))
    else:
        total = sum(4 * float(part) for part in parts) / len(parts)
    assert found == pytest.approx([total, total], rel=1e-4)


def by_hand(loss: str, ours: Tensor, theirs: Tensor) -> Tensor:
    if loss == "mse":
        return (ours - theirs) ** 2
    soft, log_ours = (theirs / 2).softmax(-1), (ours / 2).log_softmax(-1)
    entropy = (soft * soft.log()).sum() if loss == "kl" else 0.0
    return entropy - (soft * log_ours).sum()
