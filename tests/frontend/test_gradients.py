"""Captured models have the gradients of the model, or it is told which have not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from tests.tiny_models import HandwrittenEncoder, example_batch

X = {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}


class Headed(nn.Module):
    """An encoder, what is done with it, a head."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.middle(self.encoder, x))
        return found


@torch.no_grad()
def without_gradients(encoder: nn.Module, x: Tensor) -> Any:
    return encoder(x)


@torch.inference_mode()
def _in_inference(encoder: nn.Module, x: Tensor) -> Any:
    return encoder(x)


def in_inference(encoder: nn.Module, x: Tensor) -> Tensor:
    return _in_inference(encoder, x).clone()  # type: ignore[no-any-return]  # a tensor


def switched_off(encoder: nn.Module, x: Tensor) -> Any:
    torch.set_grad_enabled(False)
    found = encoder(x)
    torch.set_grad_enabled(True)
    return found


def partly_on(encoder: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        first = encoder(x)
        with torch.enable_grad():
            return first * encoder(x + 1)


def gradients(run: Callable[..., Any], tensors: dict[str, Any]) -> dict[str, Tensor | None]:
    for tensor in tensors.values():
        tensor.grad = None
    found = run(**X)
    (found["output"] if isinstance(found, dict) else found).square().sum().backward()
    return {name: tensor.grad for name, tensor in tensors.items()}


def of_program(program: Program) -> dict[str, Tensor | None]:
    return gradients(program.train(), dict(program.module.named_parameters()))


@pytest.mark.parametrize("under_no_grad", [False, True])
@pytest.mark.parametrize("middle", [without_gradients, in_inference, switched_off, partly_on])
def test_gradients_end_where_the_model_switches_them_off(
    middle: Any, under_no_grad: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Headed(middle)
    with torch.set_grad_enabled(not under_no_grad):
        program = sparsefx.capture(model, X)
    assert caplog.messages == []
    expected = gradients(model, dict(model.named_parameters()))
    assert (expected["encoder.bias"] is None) == (middle is not partly_on)
    program.save(tmp_path / "saved")
    simple = Pipeline.parse("simplify").run(program)
    for each in (program, Program.load(tmp_path / "saved"), simple):
        found = of_program(each)
        for name, gradient in expected.items():
            if gradient is None:
                assert found[name] is None, name
            else:
                torch.testing.assert_close(found[name], gradient)


def test_regions_that_end_no_gradient_stay_as_they_are() -> None:
    class Positions(nn.Module):
        frequency: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.register_buffer("frequency", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                places = torch.arange(x.shape[0])[:, None] * self.frequency
                order = (x * self.scale).argmax(-1, keepdim=True)
            return x * self.scale * places.cos() + order

    assert "detach" not in sparsefx.capture(Positions(), X).dump()


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


def straight(encoder: nn.Module, x: Tensor) -> Any:
    return Straight.apply(encoder(x))  # type: ignore[no-untyped-call]


def forward_alone(encoder: nn.Module, x: Tensor) -> Any:
    return Forward.apply(encoder(x))  # type: ignore[no-untyped-call]


def hooked(encoder: nn.Module, x: Tensor) -> Any:
    found = encoder(x)
    if found.requires_grad:
        found.register_hook(lambda gradient: -gradient)
    return found


def overwritten(encoder: nn.Module, x: Tensor) -> Any:
    found = encoder(x)
    with torch.no_grad():
        found[:, 0].mul_(3.0)
    return found


def plain(encoder: nn.Module, x: Tensor) -> Any:
    return encoder(x)


def hooked_parameter() -> nn.Module:
    model = Headed(plain)
    weight = model.encoder.weight
    weight.register_hook(lambda gradient: gradient * 0)  # type: ignore[no-untyped-call]
    return model


def hooked_module() -> nn.Module:
    def doubled(module: nn.Module, given: Any, _: Any) -> Any:
        return (given[0] * 2,)

    model = Headed(plain)
    model.head.register_full_backward_hook(doubled)
    return model


@pytest.mark.parametrize(
    ("model", "cause", "names"),
    [
        (Headed(straight), "the backward of the autograd.Function Straight", "weight, {}bias"),
        (Headed(hooked), "a hook on a value in <root> (Headed)", "weight, {}bias"),
        (Headed(overwritten), "writes while gradients are off", "weight, {}bias"),
        (hooked_parameter(), "a hook on encoder.weight", "weight"),
        (hooked_module(), "a backward hook on head (Linear)", "weight, {}bias"),
    ],
)
def test_other_gradients_than_those_of_the_model_are_told(
    model: nn.Module, cause: str, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    program = sparsefx.capture(model, X)
    (told,) = caplog.messages
    assert f"the gradients of encoder.{names.format('encoder.')} differ, as" in told
    assert cause in told
    assert "(f(y) - y).detach()" in told
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(program.eval()(**X)["output"], model(**X))


def test_a_model_without_a_backward_is_told_not_to_be_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sparsefx.capture(Headed(forward_alone), X)
    assert "gradients not compared (the backward of the autograd.Function Forward" in caplog.text
    assert "You must implement" in caplog.text


class Doubling(torch.autograd.Function):
    """A Function whose backward is that of its operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 2


def doubled(encoder: nn.Module, x: Tensor) -> Any:
    found = Doubling.apply(encoder(x))  # type: ignore[no-untyped-call]
    if found.requires_grad:
        found.register_hook(lambda _: None)
    return found


def test_equal_gradients_and_frozen_parameters_are_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sparsefx.capture(Headed(doubled), X)
    frozen = Headed(straight)
    frozen.encoder.requires_grad_(False)
    sparsefx.capture(frozen, X)
    assert caplog.messages == []


def test_no_backward_is_run_for_a_model_without_doubts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.autograd, "grad", fail)
    with caplog.at_level(logging.INFO):
        sparsefx.capture(HandwrittenEncoder(), example_batch())
    assert caplog.messages == []


def test_what_watches_the_model_is_taken_away() -> None:
    kind: Any = torch.inference_mode
    before = Tensor.register_hook, kind.__enter__, kind.__exit__
    sparsefx.capture(Headed(without_gradients), X)
    assert (Tensor.register_hook, kind.__enter__, kind.__exit__) == before
    with torch.inference_mode():
        assert torch.ones(1).is_inference()
