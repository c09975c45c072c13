"""Masks that depend on what tokens are, and writes in place: both run in PyTorch, and are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError

VOCABULARY, SIZE, SEPARATOR = 3000, 16, 13


class Encoder(nn.Module):
    """One attention, whose mask [batch, queries, keys] a subclass says; True sees."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, SIZE)
        self.query, self.key, self.value = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def attention(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.table(tokens)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / SIZE**0.5
        attended: Tensor = scores.masked_fill(~mask, -1e9).softmax(-1) @ self.value(x)
        return attended


class ByType(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        later = token_type_ids[:, :, None] < token_type_ids[:, None, :]
        return self.attention(input_ids, attention_mask.bool()[:, None, :] & ~later)


class BySegment(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        segment = (input_ids == SEPARATOR).cumsum(1)
        same = segment[:, :, None] == segment[:, None, :]
        return self.attention(input_ids, attention_mask.bool()[:, None, :] & same)


class WithoutOneToken(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask.bool() & (input_ids != SEPARATOR)
        return self.attention(input_ids, seen[:, None, :])


class WithoutTwoTokens(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        seen = (input_ids != 0) & (input_ids != SEPARATOR)
        return self.attention(input_ids, seen[:, None, :])


class BySegmentAlone(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        segment = (input_ids == SEPARATOR).cumsum(1)
        same = segment[:, :, None] == segment[:, None, :]
        return self.attention(input_ids, (input_ids != 0)[:, None, :] & same)


class WithinTypes(Encoder):
    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        same = token_type_ids[:, :, None] == token_type_ids[:, None, :]
        return self.attention(input_ids, same)


class UpToTheSecondOfAToken(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        seen = (input_ids != 0) & ((input_ids == SEPARATOR).cumsum(1) < 2)
        return self.attention(input_ids, seen[:, None, :])


class MeanWithoutOneToken(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.attention(input_ids, (input_ids != 0)[:, None, :])
        weights = ((input_ids != 0) & (input_ids != SEPARATOR)).float()[:, :, None]
        mean: Tensor = (x * weights).sum(1) / weights.sum(1)
        return mean[:, None, :].expand(x.shape)


class BlankAtOneToken(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.attention(input_ids, (input_ids != 0)[:, None, :])
        weights = ((input_ids != 0) & (input_ids != SEPARATOR)).float()[:, :, None]
        found: Tensor = self.value(x * weights)
        return found


class MeanOfTheFirst(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.attention(input_ids, (attention_mask != 0)[:, None, :])
        weights = attention_mask[:, :, None].float() * (torch.arange(x.shape[1])[:, None] < 20)
        return (x * weights).sum(1) / weights.sum(1)


class BlankBehindTheFirst(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.attention(input_ids, (attention_mask != 0)[:, None, :])
        weights = attention_mask[:, :, None].float() * (torch.arange(x.shape[1])[:, None] < 20)
        found: Tensor = self.value(x * weights)
        return found.sum(1)


class WithoutTwoOfAnotherType(WithoutTwoTokens):
    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = super().forward(input_ids.to(torch.int32).long())
        return found


class WithoutTwoInAnotherShape(WithoutTwoTokens):
    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = super().forward(input_ids.view(-1).clone().view(input_ids.shape))
        return found


class WithoutOneOfBuckets(Encoder):
    """No table tells how many tokens there are: several share a row."""

    def forward(self, input_ids: Tensor) -> Tensor:
        seen = (input_ids != 0) & (input_ids != SEPARATOR)
        return self.attention(input_ids % 40, seen[:, None, :])


class CountingPositions(Encoder):
    """Positions are counted by the mask, which is no token because of that."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        attended = self.attention(input_ids, attention_mask.bool()[:, None, :])
        placed: Tensor = attended + self.table(attention_mask.cumsum(1))
        return placed


class ByNumberOfText(Encoder):
    """Takes several texts in a row, of which the mask gives the numbers."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        same = attention_mask[:, :, None] == attention_mask[:, None, :]
        return self.attention(input_ids, same & (attention_mask != 0)[:, None, :])


class WeightedMean(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.attention(input_ids, attention_mask.bool()[:, None, :])
        weights = attention_mask[:, :, None].float()
        return (x * weights).sum(1) / weights.sum(1)


class GreatestOfFew(Encoder):
    """Reads padding, and takes no more tokens than it has places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 6, SIZE))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.attention(input_ids, attention_mask.bool()[:, None, :])
        return (x + self.places[:, : x.shape[1]]).amax(1)


class ScaledGreatest(Encoder):
    """Reads padding, and takes an input that is none of tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: Tensor) -> Tensor:
        return self.attention(input_ids, attention_mask.bool()[:, None, :]).amax(1) * scale


class InFours(Encoder):
    """Takes a number of tokens that is a multiple of four."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.view(attention_mask.shape[0], -1, 4).flatten(1)
        return self.attention(input_ids, (mask != 0)[:, None, :])


class MeanInFours(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.attention(input_ids, (attention_mask != 0)[:, None, :])
        weights = attention_mask.view(attention_mask.shape[0], -1, 4).flatten(1)[..., None].float()
        return (x * weights).sum(1) / weights.sum(1)


class FromEight(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if input_ids.shape[1] < 8:
            input_ids, attention_mask = input_ids[:, :1], attention_mask[:, :1]
        return self.attention(input_ids, (attention_mask != 0)[:, None, :])


class WithoutPadding(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.attention(input_ids, (input_ids != 0)[:, None, :])


class OnesAtHand(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask.bool() & torch.ones_like(input_ids).bool()
        return self.attention(input_ids, seen[:, None, :])


class WritesZeros(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.query(self.table(input_ids))
        x[:, 0] = 0
        return x


class Shifts(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.query(self.table(input_ids))
        y = x.clone()
        y[:, 1:] = x[:, :-1]
        shifted: Tensor = self.value(y)
        return shifted


class Halves(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.query(self.table(input_ids))
        y = torch.zeros_like(x)
        y[:, :, : SIZE // 2] = x[:, :, SIZE // 2 :]
        return y


class Doubles(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.query(self.table(input_ids))
        x[:, :, 0] *= 2
        doubled: Tensor = self.value(x)
        return doubled


class WritesPositions(Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        positions = torch.zeros(x.shape[1], SIZE)
        positions[:, 0::2] = torch.arange(x.shape[1])[:, None]
        added: Tensor = self.query(x + positions)
        return added


class Normalised(Encoder):
    """Writes running statistics, but in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIZE)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.query(self.table(input_ids))
        normal: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return normal


def batch(model: nn.Module, size: int, length: int) -> dict[str, Tensor]:
    """Random tokens, of which the last two are padding."""
    generator = torch.Generator().manual_seed(size)
    tokens = torch.randint(1, VOCABULARY, (size, length), generator=generator)
    tokens[:, [0, length // 2]] = SEPARATOR
    tokens[:, -2:] = 0
    every = {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "token_type_ids": (torch.arange(length) > length // 2).long().expand(size, -1),
        "scale": torch.rand(size, 1, generator=generator),
    }
    return {name: every[name] for name in model.forward.__annotations__ if name in every}


def largest_difference(model: nn.Module) -> tuple[float, str]:
    """Of outputs at real tokens to the model itself; and what runs in PyTorch."""
    torch.manual_seed(0)
    compiled = CpuTarget().compile(sparsefx.capture(model.eval(), batch(model, 2, 8)))
    given = batch(model, 3, 13)
    with torch.no_grad():
        difference = compiled(**given)["output"] - model(**given)
    real = given["input_ids"] != 0
    return float(difference[real].abs().max()), " ".join(map(str, compiled.outside))


def outside_of_equal(form: type[Encoder], *, captured: int, given: int) -> str:
    """What runs in PyTorch of a model captured with so many tokens, that is equal with others."""
    model = form().eval()
    compiled = CpuTarget().compile(sparsefx.capture(model, batch(model, 2, captured)))
    tokens = batch(model, 3, given)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**tokens)["output"], model(**tokens))
    return " ".join(map(str, compiled.outside))


@pytest.mark.parametrize(
    "model",
    [
        *(ByType, BySegment, BySegmentAlone, WithoutOneToken, WithoutTwoTokens),
        *(UpToTheSecondOfAToken, WithinTypes),
        *(WithoutTwoOfAnotherType, WithoutTwoInAnotherShape, WithoutOneOfBuckets),
    ],
)
def test_a_mask_by_what_tokens_are_runs_in_pytorch(model: type[Encoder]) -> None:
    difference, outside = largest_difference(model())
    assert difference < 1e-5
    assert "its mask depends on more than padding" in outside


@pytest.mark.parametrize("model", [MeanWithoutOneToken, BlankAtOneToken])
def test_a_factor_by_what_tokens_are_runs_in_pytorch(model: type[Encoder]) -> None:
    difference, outside = largest_difference(model())
    assert difference < 1e-5
    assert "a factor that is not a number" in outside


@pytest.mark.parametrize("form", [MeanOfTheFirst, BlankBehindTheFirst])
def test_a_factor_that_long_sequences_show_runs_in_pytorch(form: type[Encoder]) -> None:
    assert "a factor that is not a number" in outside_of_equal(form, captured=8, given=40)


@pytest.mark.parametrize("model", [WithoutPadding, OnesAtHand, CountingPositions])
def test_a_mask_of_padding_runs_in_kernels(model: type[Encoder]) -> None:
    difference, outside = largest_difference(model())
    assert difference < 1e-5
    assert outside == ""


@pytest.mark.parametrize("form", [GreatestOfFew, ScaledGreatest])
def test_padding_that_counts_is_found_at_any_sizes_and_inputs(form: type[Encoder]) -> None:
    assert "padding counts there" in outside_of_equal(form, captured=6, given=5)


@pytest.mark.parametrize(
    ("form", "outside"),
    [
        (InFours, "its mask takes none of the sizes that are tried"),
        (MeanInFours, "a factor that is not a number"),
        (FromEight, ""),
    ],
)
def test_a_model_that_takes_certain_lengths_alone_is_lowered(
    form: type[Encoder], outside: str
) -> None:
    model = form().eval()
    compiled = CpuTarget().compile(sparsefx.capture(model, batch(model, 2, 8)))
    assert outside in " ".join(map(str, compiled.outside))
    assert bool(outside) == bool(compiled.outside)
    given = batch(model, 3, 16)
    with torch.no_grad():
        difference = compiled(**given)["output"] - model(**given)
    kept = difference[given["input_ids"] != 0] if form is not MeanInFours else difference
    assert float(kept.abs().max()) < 1e-5


@pytest.mark.parametrize("form", [ByNumberOfText, WeightedMean])
def test_a_mask_of_other_numbers_than_it_was_tried_with_runs_in_pytorch(
    form: type[Encoder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = form().eval()
    given = batch(model, 2, 8)
    compiled = CpuTarget().compile(sparsefx.capture(model, given))
    assert compiled.outside == ()
    loaded = load(compiled.save(tmp_path / "model"))
    compiled(**given)
    assert caplog.messages == []
    given["attention_mask"][:, 3:6] = 2
    with torch.no_grad():
        difference = compiled(**given)["output"] - model(**given)
    if form is ByNumberOfText:
        difference = difference[given["input_ids"] != 0]
    assert float(difference.abs().max()) < 1e-5
    assert "attention_mask holds more than 0 and 1" in caplog.text
    with pytest.raises(ProgramError, match="more than 0 and 1") as caught:
        loaded(**given)
    assert caught.value.where == "attention_mask"


@pytest.mark.parametrize("model", [WritesZeros, Shifts, Halves, Doubles])
def test_a_write_to_a_part_runs_in_pytorch(model: type[Encoder]) -> None:
    difference, outside = largest_difference(model())
    assert difference < 1e-5
    assert "writes into the memory of an activation" in outside


def test_what_is_written_beside_activations_counts() -> None:
    assert largest_difference(WritesPositions())[0] < 1e-5


def test_running_statistics_are_not_written_in_evaluation() -> None:
    difference, outside = largest_difference(Normalised())
    assert difference < 1e-5
    assert outside == "%batch_norm: no kernel for aten.batch_norm.default (runs in PyTorch)"
