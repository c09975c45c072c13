"""What a model does in evaluation mode alone is refused, with the line that asks for the mode."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.errors import CaptureError
from tests.tiny_models import HandwrittenEncoder, example_batch

X = {"x": torch.randn(2, 8, generator=torch.Generator().manual_seed(0))}


class Softening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.softmax(-1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class More(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": x} if self.training else {"score": x, "share": x.softmax(-1)}


class Shorter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x[:, :1]


class Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(self.drop(x))
        return result


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Softening(), "output differs by"),
        (Noisy(), "output differs by"),
        (More(), "the model returns score, share, the graph score"),
        (Shorter(), "output has shape (2, 1), in the graph (2, 8)"),
    ],
)
def test_a_branch_on_the_mode_is_refused(
    model: nn.Module, expected: str, is_training: bool
) -> None:
    with pytest.raises(CaptureError) as caught:
        sparsefx.capture(Inside(model).train(is_training), X)
    assert expected in str(caught.value)
    assert f"{type(model).__name__}.forward (test_agreement.py:" in caught.value.where
    assert "for evaluation alone, capture what torch.export.export makes" in caught.value.hint


class Filled(nn.Module):
    """Fills scores of what is masked with a number that no model computes."""

    def __init__(self, fill: float, *, doubles: bool) -> None:
        super().__init__()
        self.fill, self.doubles = fill, doubles

    def forward(self, x: Tensor) -> Tensor:
        scores = x * 2 if self.doubles and not self.training else x
        return scores.masked_fill(x < 0, self.fill)


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_what_fills_masked_places_hides_no_difference(fill: float) -> None:
    with pytest.raises(CaptureError, match="output differs by"):
        sparsefx.capture(Filled(fill, doubles=True), X)
    program = sparsefx.capture(Filled(fill, doubles=False), X)
    assert bool((program(**X)["output"] <= -1e4).any())


@pytest.mark.filterwarnings("error")
def test_a_parameter_among_the_outputs_is_compared_without_a_word() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.scale, self.scale

    assert sparsefx.capture(Bare(), X).signature.outputs == ("output.0", "output.1")


def test_a_size_among_the_outputs_is_no_difference() -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor | int]:
            return {"score": x * 2, "count": x.shape[0]}

    found = sparsefx.capture(Sized(), X)(x=torch.ones(5, 8))
    assert found["count"] == 5


def test_the_way_out_gives_the_graph_of_evaluation() -> None:
    exported = torch.export.export(Softening().eval(), (), X)
    program = sparsefx.capture(exported)
    torch.testing.assert_close(program(**X)["output"], X["x"].softmax(-1))


@pytest.mark.parametrize(
    ("module", "place"),
    [(nn.RReLU(), "RReLU.forward (activation.py:"), (nn.AlphaDropout(), "AlphaDropout.forward (")],
)
def test_modules_of_torch_that_follow_the_mode_alone_are_named(
    module: nn.Module, place: str
) -> None:
    with pytest.raises(CaptureError, match="output differs by") as caught:
        sparsefx.capture(nn.Sequential(nn.Dropout(0.5), module).eval(), {"input": X["x"]})
    assert caught.value.where.startswith(place)


def test_a_batch_norm_without_statistics_is_alike_in_both_modes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False)).eval()
    program = sparsefx.capture(model, {"input": X["x"]})
    torch.testing.assert_close(program(input=X["x"])["output"], model(X["x"]))


class Drawing(nn.Module):
    """Draws in both modes, counts its calls, and ends some rows in what is no number."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        drawn = self.norm(x + torch.randn_like(x)) * (1 - self.training * 0)
        return torch.where(drawn > 1, torch.nan, drawn)


def test_what_agrees_is_captured_and_leaves_no_trace() -> None:
    model = Drawing().eval()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    program = sparsefx.capture(model, X)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(t, state[name]) for name, t in program.named_tensors().items())


def test_padding_in_nn_transformer_encoder_is_no_difference() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 1).requires_grad_(False)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            found: Tensor = self.encoder(x, src_key_padding_mask=padding)
            return found

    padding = torch.tensor([[False, False, False], [False, True, True]])
    program = sparsefx.capture(Padded().eval(), {"x": torch.randn(2, 3, 8), "padding": padding})
    assert program.signature.conditions == ()


def test_a_model_that_cannot_run_its_example_is_not_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = example_batch()
    batch["input_ids"][0, 0] = 1000
    sparsefx.capture(HandwrittenEncoder().eval(), batch)
    assert "not compared with the model, which fails on its example: index" in caplog.text


def test_a_model_without_values_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    batch = {name: value.to("meta") for name, value in example_batch().items()}
    with caplog.at_level(logging.INFO):
        sparsefx.capture(HandwrittenEncoder().to("meta").eval(), batch)
    assert caplog.messages == []


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.tensor([0, 11])]


def test_an_example_that_cannot_be_cut_is_compared_whole() -> None:
    x = torch.ones(2, 12, dtype=torch.int64)
    assert sparsefx.capture(Whole(), {"x": x}).signature.conditions == ()


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        return x + found


class Always(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("model", [Always(), Attending()])
def test_dropout_that_never_ends_is_named(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match="dropout that ignores the mode runs in") as caught:
        sparsefx.capture(Inside(model).eval(), X)
    assert caught.value.where.startswith(f"{type(model).__name__}.forward (test_agreement.py:")
    assert "functional.dropout(x, p, self.training)" in caught.value.hint


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_model_that_changes_from_call_to_call_is_told_to_use_buffers() -> None:
    with pytest.raises(CaptureError, match="called a second time, the model gives some") as caught:
        sparsefx.capture(Inside(Counting()).eval(), X)
    assert "keep what changes from call to call in a buffer" in caught.value.hint
