"""Encoders of torch's own modules, and other spellings that a user's model has: taken whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline
from sparsefx.backends.cpu.analyses.axes import Channels, Layout, arranged, tokens_by_channels
from sparsefx.backends.cpu.artifact import load
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.passes.quantize.calibrate import calibrate
from tests.backends.cpu_cases import padded_batch, quantized
from tests.tiny_models import example_batch


class Transformer(nn.Module):
    """`nn.TransformerEncoder` on embeddings and a buffer of positions."""

    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.words = nn.Embedding(100, 32)
        table = torch.randn(128, 32)
        self.register_buffer("places", table[None] if batch_first else table[:, None])
        layer = nn.TransformerEncoderLayer(
            *(32, 4, 48), activation="gelu", batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.score = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) * math.sqrt(32)
        length = input_ids.shape[1]
        if self.batch_first:
            x = x + self.places[:, :length]  # type: ignore[index]
        else:
            x = x.transpose(0, 1) + self.places[:length]  # type: ignore[index]
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        return {"hidden": x, "logits": self.score(x[:, 0] if self.batch_first else x[0])}


class Attention(nn.Module):
    """`nn.MultiheadAttention` with weights, which spells attention with bmm and baddbmm."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.words = nn.Embedding(100, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.norm, self.score = nn.LayerNorm(32), nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids)
        x = x if self.batch_first else x.transpose(0, 1)
        mixed, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0)
        x = self.norm(x + mixed)
        return {"logits": self.score(x if self.batch_first else x.transpose(0, 1))}


class Fused(nn.Module):
    """One linear for query, key and value, one for gate and up; three ways to cut and to mask."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way
        self.words, self.norm = nn.Embedding(100, 32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 80), nn.Linear(40, 32)
        self.score = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.words(input_ids))
        mixed = self.attend(self.qkv(x), attention_mask[:, None, None])
        x = x + self.out(mixed)
        return {"logits": self.score((x + self.down(self.gated(self.up(x))))[:, 0])}

    def attend(self, qkv: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = qkv.shape
        if self.way == 0:
            q, k, v = qkv.view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.way == 1:
            q, k, v = (p.view(batch, length, 4, 8).transpose(1, 2) for p in qkv.chunk(3, -1))
        else:
            cut = (p.reshape(batch, length, 4, 8) for p in torch.split(qkv, 32, 2))
            q, k, v = (p.permute(0, 2, 1, 3) for p in cut)
        scores = (q / 8**0.5) @ k.transpose(-1, -2)
        if self.way == 0:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        elif self.way == 1:
            scores = torch.where(mask.bool(), scores, -1e9)
        else:
            scores = scores + (1 - mask.float()) * -1e9
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def gated(self, both: Tensor) -> Tensor:
        if self.way == 0:
            gate, up = both.chunk(2, -1)
            return nn.functional.silu(gate) * up
        if self.way == 1:
            gate, up = both[..., :40], both[..., 40:]
            return gate * torch.sigmoid(gate) * up
        up, gate = torch.split(both, 40, -1)
        gated: Tensor = up * (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))
        return gated


class Overwriting(nn.Module):
    """Sums of embeddings and of residuals in place."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, 32), nn.Embedding(64, 32)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 48), nn.Linear(48, 32)
        self.score = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids)
        x += self.places(torch.arange(input_ids.shape[1]))
        states = self.down(torch.relu_(self.up(self.norm(x))))
        states += x
        return {"logits": self.score(states[:, 0])}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformer": lambda: Transformer(batch_first=True, norm_first=False),
    "transformer, sequence first": lambda: Transformer(batch_first=False, norm_first=False),
    "transformer, norm first": lambda: Transformer(batch_first=False, norm_first=True),
    "attention": lambda: Attention(batch_first=True),
    "attention, sequence first": lambda: Attention(batch_first=False),
    "overwriting": Overwriting,
    **{f"fused {way}": lambda way=way: Fused(way) for way in range(3)},  # type: ignore[misc]
}
LINEARS = {"attention": 3, "fused": 5, "overwriting": 3, "transformer": 9}


@pytest.mark.parametrize("name", MODELS)
def test_own_models_are_taken_whole(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = sparsefx.capture(MODELS[name]().eval(), example_batch())
    for item, tolerance in ((program, 1e-5), (quantized(program, example_batch(3, 21)), 2e-2)):
        assert CpuTarget().unsupported(item) == ()
        compiled = CpuTarget(rates="built-in").lower(item)
        assert compiled.explain().linears == (LINEARS[name.split(",")[0].split()[0]], 0)
        for rows, length in ((3, 21), (1, 1), (2, 64)):
            batch = padded_batch(item, rows, length)
            real = batch["attention_mask"].bool()
            found = compiled(**batch)
            for output, value in item(**batch).items():
                gap = (value - found[output]).detach().abs()
                if gap.dim() == 3:
                    gap = gap[real] if gap.shape[:2] == real.shape else gap.transpose(0, 1)[real]
                assert float(gap.max()) < tolerance
    loaded = load(compiled.save(tmp_path / "m"))(**{n: t.numpy() for n, t in batch.items()})
    for output, value in found.items():
        np.testing.assert_array_equal(loaded[output], value)


@pytest.mark.parametrize("shape", [(1, 8), (4, 4), (1, 1)])
def test_sizes_may_be_fixed(shape: tuple[int, int]) -> None:
    # Sizes that are equal to each other, to the heads or to 1 tell nothing apart.
    torch.manual_seed(0)
    batch = example_batch(*shape)
    batch["attention_mask"][:, 0] = 1
    program = sparsefx.capture(Fused(0).eval(), batch, dynamic={})
    compiled = CpuTarget(rates="built-in").lower(program)
    assert compiled.explain().linears == (5, 0)
    torch.testing.assert_close(compiled(**batch), program(**batch), rtol=0, atol=1e-5)


class Divided(Fused):
    """Divides what the down projection reads by nought."""

    def gated(self, both: Tensor) -> Tensor:
        return super().gated(both) / 0.0


def test_a_division_by_nought_is_left_to_pytorch() -> None:
    program = sparsefx.capture(Divided(0).eval(), example_batch())
    found = CpuTarget(rates="built-in").unsupported(program)
    assert any("a division by zero" in item.reason for item in found)


def test_gates_take_their_activation_along() -> None:
    program = sparsefx.capture(Fused(2).eval(), example_batch())
    listed = CpuTarget(rates="built-in").lower(program).listing()
    assert "f32_gelu_f" in next(line for line in listed.splitlines() if "linear_2[40:80]" in line)
    assert listed.count(" mul ") == 1


def test_a_transformer_encoder_goes_through_the_quantize_passes() -> None:
    torch.manual_seed(0)
    model = Transformer(batch_first=False, norm_first=False).eval()
    program = Pipeline.parse("quantize-prepare").run(sparsefx.capture(model, example_batch()))
    calibrate(program, [example_batch(4, length, seed=length) for length in (5, 8, 13)])
    program = Pipeline.parse("quantize-convert").run(program)
    compiled = CpuTarget(attention="fp32").lower(program)
    assert compiled.explain().linears == (9, 0)
    batch = example_batch(3, 11)
    with torch.no_grad():
        gap = program(**batch)["logits"] - compiled(**batch)["logits"]
    assert float(gap.abs().max()) < 2e-2


def test_layouts_follow_views() -> None:
    sizes = {"b": 5, "s": 7}
    heads = tokens_by_channels(192).reshaped([5, 7, 3, 4, 16], sizes)
    assert heads is not None
    key = heads.selected(2, 1)
    assert key is not None
    assert key.first == 64
    assert key.swapped(1, 2).heads() == ("bsd", 4, 16)
    assert key.permuted((0, 2, 3, 1)).heads() == ("bds", 4, 16)
    assert key.reshaped([5, 7, 64], sizes) == Layout(tokens_by_channels(64).dims, 64)
    assert key.swapped(1, 2).reshaped([20, 7, 16], sizes).heads() == ("bsd", 4, 16)  # type: ignore[union-attr]
    assert key.swapped(1, 2).reshaped([5, 7, 64], sizes) is None
    # A view must not mix tokens.
    assert tokens_by_channels(64).reshaped([7, 5, 64], sizes) is None


@pytest.mark.parametrize("seed", range(8))
def test_layouts_say_where_torch_puts_every_element(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"b": 3, "s": 5}
    rows = np.arange(3 * 5 * 24, dtype=np.float32).reshape(3, 5, 24)
    tensor, layout = torch.from_numpy(rows), tokens_by_channels(24)
    for _ in range(6):
        rank = tensor.dim()
        kind = rng.integers(4)
        if kind == 0:
            order = [int(n) for n in rng.permutation(rank)]
            tensor, layout = tensor.permute(order), layout.permuted(order)
            continue
        places = [
            n
            for n, dim in enumerate(layout.dims)
            if len(dim) == 1 and isinstance(dim[0], Channels) and dim[0].size % 2 == 0
        ]
        if not places:
            continue
        dim = places[0]
        size = tensor.shape[dim]
        if kind == 1:
            found, tensor = layout.selected(dim, size - 1), tensor.select(dim, size - 1)
        elif kind == 2:
            found, tensor = layout.cut(dim, 1, size // 2), tensor.narrow(dim, 1, size // 2)
        else:
            shape = [*tensor.shape[:dim], 2, size // 2, *tensor.shape[dim + 1 :]]
            found, tensor = layout.reshaped(shape, sizes), tensor.reshape(shape)
        assert found is not None
        layout = found
        decoded = Layout.decoded(layout.encoded())
        assert decoded == layout
        np.testing.assert_array_equal(arranged(rows, decoded), tensor.numpy())
