"""What the cpu target says of models, or parts of them, that it does not compute."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Program
from sparsefx.backends.cpu.machine.isa import IsaName
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.cli import main
from sparsefx.errors import TargetError
from tests.backends.cpu_cases import RUNNABLE, quantized
from tests.tiny_models import example_batch, tiny


class Patches(nn.Module):
    """A transformer on images: no input holds tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 2)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return {"logits": self.head(self.norm(x)[:, 0])}


def test_a_model_without_tokens_is_refused_before_it_runs() -> None:
    program = sparsefx.capture(Patches().eval(), {"pixel_values": torch.randn(2, 3, 8, 8)})
    target = CpuTarget()
    (found,) = target.unsupported(program)
    assert not found.instead
    said = "cpu packs tokens, but no input is [batch, sequence]: pixel_values [batch, 3, 8, 8]"
    hint = "use the target reference or onnxruntime"
    assert found.reason == f"{said}; {hint}"
    for lower in (target.compile, target.lower):
        with pytest.raises(TargetError) as caught:
            lower(program)
        assert str(caught.value) == f"cpu at inputs: {said}\n  hint: {hint}"


def test_a_model_in_bfloat16_is_refused_before_it_runs() -> None:
    model = tiny("handwritten").to(torch.bfloat16)
    program = sparsefx.capture(model, example_batch()).eval()
    target = CpuTarget()
    (found,) = target.unsupported(program)
    assert (found.where, found.instead) == ("blocks.0.down.bias", "")
    for lower in (target.compile, target.lower):
        with pytest.raises(TargetError) as caught:
            lower(program)
        assert str(caught.value) == (
            "cpu at blocks.0.down.bias: this tensor is in bfloat16; weights are packed from "
            "float32, float16 or float64\n  hint: call model.float() before the capture"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_outputs_have_the_type_of_the_model(dtype: torch.dtype) -> None:
    # Softplus runs in PyTorch, and the head after it, whose weights are not float32 either.
    torch.manual_seed(0)
    model = Gated(nn.SiLU(), nn.Softplus()).eval().to(dtype)
    batch = {"input_ids": torch.randint(50, (3, 21))}
    program = sparsefx.capture(model, batch)
    compiled = CpuTarget().lower(program)
    assert compiled.outside
    for name, value in program(**batch).items():
        torch.testing.assert_close(compiled(**batch)[name], value, rtol=0, atol=2e-2)


class Gated(nn.Module):
    """A gated block on tokens, then whatever `after` does."""

    def __init__(self, gate: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.first, self.second = nn.Linear(32, 48), nn.Linear(32, 48)
        self.down, self.head = nn.Linear(48, 32), nn.Linear(32, 2)
        self.norm = nn.LayerNorm(32)
        self.gate, self.after = gate, after

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        x = self.norm(x + self.down(self.first(x) * self.gate(self.second(x))))
        return {"logits": self.head(self.after(x)[:, 0]), "hidden": x}


def gated(gate: nn.Module, after: nn.Module) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(50, (3, 21))}
    return sparsefx.capture(Gated(gate, after).eval(), batch), batch


class Steep(nn.Module):
    """Multiplies with the sigmoid of its input times a number: 1.702 makes it a QuickGELU."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.factor * x)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.SiLU(), nn.Tanh(), nn.GELU(), Steep(1.702)])
def test_gates_stay_in_the_plan(isa: IsaName, gate: nn.Module) -> None:
    program, batch = gated(gate, nn.Identity())
    for item, tolerance in ((program, 1e-5), (quantized(program, batch), 2e-2)):
        assert CpuTarget(isa=isa).unsupported(item) == ()
        listed = CpuTarget(isa=isa, rates="built-in").lower(item).listing()
        assert listed.count(" embed ") == 1  # though three nodes read it
        found, expected = CpuTarget(isa=isa, rates="built-in").lower(item)(**batch), item(**batch)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)


def test_activations_at_extreme_inputs() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Embedding(8, 16)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            x = self.values(input_ids)
            return {"sigmoid": torch.sigmoid(x), "silu": nn.functional.silu(x)}

    model = Alone().eval()
    limits = torch.tensor([0.0, 1e-30, 20.0, 80.0, 90.0, 1e4, 1e30, 3.0])
    model.values.weight.data = torch.stack([limits, -limits], 1).repeat(1, 8)
    program = sparsefx.capture(model, {"input_ids": torch.arange(8)[None]})
    assert CpuTarget().unsupported(program) == ()
    found = CpuTarget().lower(program)(input_ids=torch.arange(8)[None])
    for name, value in program(input_ids=torch.arange(8)[None]).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_what_is_outside_says_how_many_linears_it_takes_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = nn.Sequential(nn.Softplus(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    program, _ = gated(nn.Sigmoid(), after)
    (found,) = CpuTarget().unsupported(program)
    said = f"{found.where}: no kernel for aten.softplus.default"
    said += " (runs in PyTorch, and 3 of 6 linears with it)"
    assert str(found) == said
    folder = str(program.save(tmp_path / "p"))
    for command in (["explain-cpu", folder], ["bench", folder, "-t", "cpu", "--runs", "3"]):
        with pytest.raises(SystemExit):
            main([*command, "--shape", "1x8"])
        shown = capsys.readouterr()
        assert said in " ".join(shown.err.split())
        if command[0] == "explain-cpu":
            assert "3 of 6 linears run in PyTorch, outside the plan" in shown.out


def test_an_activation_without_a_kernel_is_told_by_what_it_reads() -> None:
    program, _ = gated(nn.Sigmoid(), Steep(1.5))
    (found,) = CpuTarget().unsupported(program)
    assert found.where == "%sigmoid_1"
    said = r"its input %mul_\d is a product with a number, which attention alone takes"
    assert re.fullmatch(said, found.reason)


def test_a_model_without_embeddings_is_told_to_run_in_pytorch() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    program = sparsefx.capture(model, {"input": torch.randn(2, 8)})
    (found,) = CpuTarget().unsupported(program)
    assert found.reason == "it does not depend on an embedding of tokens"
    assert found.instead == "runs in PyTorch, and 2 of 2 linears with it"
    batch = {"input": torch.randn(3, 8)}
    torch.testing.assert_close(CpuTarget().lower(program)(**batch), program(**batch))


def test_explain_says_how_long_pytorch_takes() -> None:
    program, _ = gated(nn.Sigmoid(), nn.Sequential(nn.Softplus(), nn.Linear(32, 32)))
    compiled = CpuTarget(rates="built-in").lower(program)
    shown = str(compiled.explain(1, 16, timed=True))
    form = r"linears run in PyTorch, outside the plan: [\d,.]+ us there, \d+% of the time"
    assert re.search(form, shown)
    assert "there" not in str(compiled.explain(1, 16))


class Added(nn.Module):
    """Attention whose scores begin with products of the states themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv, self.score = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) * 3
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.baddbmm(torch.bmm(x, x.transpose(1, 2)), q, k.transpose(1, 2))
        scored: Tensor = self.score(scores.softmax(-1) @ v)
        return scored


def test_scores_that_begin_with_activations_run_in_pytorch() -> None:
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(50, (2, 9))}
    program = sparsefx.capture(Added().eval(), batch)
    compiled = CpuTarget(rates="built-in").lower(program)
    assert [found.reason for found in compiled.outside] == ["a product that is not attention"]
    torch.testing.assert_close(compiled(**batch), program(**batch))


class Asking(nn.Module):
    """Attention whose queries are the same for every text."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kv, self.score = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(16, 2)
        self.queries = nn.Parameter(torch.randn(1, 1, 3, 16))

    def forward(self, input_ids: Tensor) -> Tensor:
        k, v = self.kv(self.words(input_ids))[:, None].chunk(2, -1)
        q = self.queries.expand(input_ids.shape[0], -1, -1, -1)
        scored: Tensor = self.score(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])
        return scored


def test_queries_without_tokens_are_told_by_their_name() -> None:
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(50, (2, 9))}
    program = sparsefx.capture(Asking().eval(), batch)
    compiled = CpuTarget(rates="built-in").lower(program)
    said = "its input %expand does not depend on an embedding of tokens"
    assert [found.reason for found in compiled.outside] == [said]
    torch.testing.assert_close(compiled(**batch), program(**batch))


class Turned(nn.Module):
    """Turns the heads of a linear, does something to them that no kernel does, and reads them."""

    def __init__(self, read: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.read = read

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        rows, tokens = input_ids.shape
        heads = self.first(self.embedding(input_ids)).view(rows, tokens, 2, 8)
        return {"logits": self.last(self.read(heads, rows, tokens))}


@pytest.mark.parametrize(
    "read",
    [
        lambda x, b, s: x.transpose(1, 2).sin().transpose(1, 2).view(b, s, 16),
        lambda x, b, s: torch.ones_like(x.transpose(1, 2)).transpose(1, 2).view(b, s, 16),
        lambda x, b, s: x.transpose(1, 2).as_strided((b, s, 16), (s * 16, 16, 1)).cumsum(1),
        lambda x, b, s: x[:, 0].as_strided((b, s, 16), (s * 16, 16, 1)).cumsum(1),
        lambda x, b, s: x[:, :, 1].as_strided((b, s, 16), (s * 16, 8, 1), 0).cumsum(1),
    ],
)
def test_what_is_handed_over_lies_in_memory_as_in_pytorch(
    read: Callable[[Tensor, int, int], Tensor],
) -> None:
    torch.manual_seed(0)
    model, batch = Turned(read).eval(), {"input_ids": torch.randint(50, (3, 7))}
    compiled = CpuTarget().lower(sparsefx.capture(model, batch))
    torch.testing.assert_close(compiled(**batch), model(**batch))
