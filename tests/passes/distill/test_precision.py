"""distill under autocast: a loss is as exact as the bf16 values that it is computed from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx import Pipeline, Program
from sparsefx.testing import small_encoder, small_program


def moved(program: Program, size: float) -> Program:
    """Return a copy with slightly other parameters."""
    other = program.copy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return other


def losses(
    text: str, student: Program, teacher: Program, given: dict[str, Tensor], output: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss under autocast, and what it compares, as float64."""
    joined = Pipeline.parse(text).run(student, programs={"teacher": teacher})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (each.eval()(**given)[output] for each in (student, teacher))
        loss = joined.eval()(**given)["loss"]
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    return loss.double(), ours.double(), theirs.double()


@pytest.mark.parametrize("kind", ["kl", "soft-ce", "bce", "cosine"])
def test_logits(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 8)
    nn.init.constant_(linear.bias, 8.0)  # the sigmoid is 1 - 3e-4, which bf16 rounds to 1
    student = small_program(linear, input=torch.ones(32, 64))
    teacher = moved(student, 0.005)
    text = f"distill{{logits_loss={kind},temperature=1.0}}"
    given = {"input": 4 * torch.randn(32, 64)}
    loss, ours, theirs = losses(text, student, teacher, given, "output")
    log_ours, soft = F.log_softmax(ours, -1), F.softmax(theirs, -1)
    expected = {
        "kl": F.kl_div(log_ours, soft, reduction="batchmean"),
        "soft-ce": -(soft * log_ours).sum(-1).mean(),
        "bce": F.binary_cross_entropy_with_logits(ours, theirs.sigmoid(), reduction="none")
        .sum(-1)
        .mean(),
        "cosine": (1 - F.cosine_similarity(ours, theirs)).mean(),
    }[kind]
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("term", ["cosine", "cls"])
def test_states(term: str) -> None:
    """Those of ELECTRA are bf16: its embeddings come out of a linear."""
    student = small_encoder("ElectraModel", num_hidden_layers=1, embedding_size=4)
    teacher = moved(student, 0.0002)
    text = f"distill{{logits=0,{term}=1.0,temperature=1.0}}"
    given = {"input_ids": torch.arange(32).reshape(4, 8) % 20}
    loss, ours, theirs = losses(text, student, teacher, given, "last_hidden_state")
    if term == "cls":
        ours, theirs = (F.normalize(states[:, 0], dim=-1) for states in (ours, theirs))
        expected = F.mse_loss(ours, theirs)
    else:
        expected = (1 - F.cosine_similarity(ours, theirs, -1)).mean()
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
