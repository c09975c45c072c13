"""capture: what cannot be exported is refused with the line of the model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.errors import CaptureError


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = BranchingInner()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * 2
        return result


class BranchingInner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("noted", file=sys.stderr)
        return x if x.sum() > 0 else -x


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.encoder(x, mask=torch.ones(5, 5, dtype=torch.bool).triu(1))
        return found


ON_VALUES = ": what it does there depends on the value of a tensor, and a graph does the same"


@pytest.mark.parametrize(
    ("model", "x", "where", "line", "hint"),
    [
        (
            *(Branching(), torch.randn(2, 3), "inner (BranchingInner)"),
            *(
                r"BranchingInner.forward \(test_refusals.py:\d+\)",
                "choose with torch.where",
            ),
        ),
        (
            *(nn.Sequential(nn.BatchNorm1d(4, momentum=None)), torch.randn(2, 4)),
            *("0 (BatchNorm1d)", r"_BatchNorm.forward \(batchnorm.py:\d+\)", "a momentum"),
        ),
        (
            *(Masked(), torch.randn(2, 5, 4), "encoder (TransformerEncoder)"),
            *(r"_detect_is_causal_mask \(transformer.py:\d+\)", "is_causal=True"),
        ),
    ],
)
def test_what_looks_at_values_names_module_line_and_way_out(
    model: nn.Module, x: Tensor, where: str, line: str, hint: str
) -> None:
    with pytest.raises(CaptureError, match=f"torch.export failed at {line}{ON_VALUES}") as caught:
        sparsefx.capture(model, [x])
    assert caught.value.where == where
    assert hint in caught.value.hint


def test_other_failures_name_the_line_too() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x[0]])

    line = r"Failing.forward \(test_refusals.py:\d+\)"
    with pytest.raises(CaptureError, match=f"torch.export failed at .*{line}: .*dim") as caught:
        sparsefx.capture(Failing(), [torch.randn(2, 3)])
    assert caught.value.where == "<root> (Failing)"


def test_torch_prints_no_graph_where_capture_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        sparsefx.capture(Printing(), {"x": torch.randn(2, 3)})
    assert capfd.readouterr().err == "noted\n"


@dataclass
class Result:
    scores: Tensor


@pytest.mark.parametrize("wrap", [Result, lambda x: {"first": x, "rest": [Result(x)]}])
def test_a_model_that_returns_an_object_of_its_own_is_told_what_to_return(wrap: Any) -> None:
    class Returning(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x * 2)

    with pytest.raises(CaptureError) as caught:
        sparsefx.capture(Returning(), {"x": torch.randn(2, 3)})
    assert str(caught.value) == (
        "capture at Returning: its forward returns Result, which torch.export cannot look into\n"
        "  hint: return a tensor, or a tuple, list, dict or ModelOutput of tensors; a module "
        "around the model can do so"
    )


class Pair(nn.Module):
    def __init__(self, other: str) -> None:
        super().__init__()
        self.student = nn.Linear(3, 3)
        self.add_module(other, nn.Linear(3, 3))
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.student(x) - self.get_submodule(self.other)(x)
        return found


@pytest.mark.parametrize("name", ["teacher", "distill"])
def test_names_of_a_distillation_are_refused(name: str) -> None:
    with pytest.raises(CaptureError, match=f"has a module '{name}', a name that distill") as told:
        sparsefx.capture(Pair(name), {"x": torch.ones(2, 3)})
    assert told.value.where == f"{name}.weight"
    assert told.value.hint == f"rename self.{name}"
    inner = nn.Sequential(Pair(name))
    assert (
        sparsefx.capture(inner, {"input": torch.ones(2, 3)}).tensor(f"0.{name}.weight").dim() == 2
    )
