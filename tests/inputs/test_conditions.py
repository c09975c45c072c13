"""Sizes at which a model would take another way through its code are refused, by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Program, registry
from sparsefx.arithmetic import names_in
from sparsefx.errors import CaptureError, ProgramError
from sparsefx.inputs.conditions import check_condition, holds, is_same
from sparsefx.inputs.signature import InputSpec, Signature
from sparsefx.rewrite import Rewriter
from tests.programs import captured
from tests.tiny_models import ARCHITECTURES

IDS = {"ids": torch.arange(16).reshape(2, 8)}


class Cutting(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 16:
            ids = ids[:, :16]
        return ids * 2.0


class Alone(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids * (2.0 if ids.shape[0] == 1 else 1.0)


class Padding(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if length % 4:
            ids = nn.functional.pad(ids, (0, 4 - length % 4))
        return ids.reshape(ids.shape[0], -1, 4).sum(-1)


class Least(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids[:, : min(ids.shape[1], 12)] * 1.0


class Parts(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        parts = torch.split(ids * 1.0, 4, 1)
        return torch.stack([part.sum(1) for part in parts])


class Square(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids * (3.0 if ids.shape[1] == ids.shape[0] * 4 else 1.0)


def called(program: Program, *shape: int) -> Tensor:
    return program(ids=torch.ones(shape, dtype=torch.int64))["output"]


@pytest.mark.parametrize(
    ("model", "condition", "taken", "refused", "place"),
    [
        (Cutting(), "sequence <= 16", (3, 16), (3, 20), "dimension 1 of ids (sequence) is 20"),
        (Alone(), "batch >= 2", (2, 1), (1, 8), "dimension 0 of ids (batch) is 1"),
        (Padding(), "sequence % 4 == 0", (1, 12), (2, 5), "dimension 1 of ids (sequence) is 5"),
        (Parts(), "(3 + sequence) // 4 == 2", (1, 7), (1, 9), "(sequence) is 9"),
        (Square(), "sequence == 4 * batch", (3, 12), (3, 8), "(batch) is 3 and dimension 1 of"),
    ],
)
def test_other_sizes_are_refused_by_name(
    model: nn.Module,
    condition: str,
    taken: tuple[int, int],
    refused: tuple[int, int],
    place: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = sparsefx.capture(model, IDS)
    assert condition in program.signature.conditions
    assert "the graph holds for" in caplog.text
    assert condition in caplog.text
    example = torch.ones(taken, dtype=torch.int64)
    assert torch.equal(called(program, *taken), model(example))
    with pytest.raises(ProgramError, match="alone") as caught:
        called(program, *refused)
    assert place in str(caught.value)
    assert f"the graph holds for {condition} alone" in str(caught.value)
    assert caught.value.where == "ids"


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (5, 3)])
def test_small_sizes_are_taken_where_nothing_asks_for_them(shape: tuple[int, int]) -> None:
    program = sparsefx.capture(Cutting(), IDS)
    assert program.signature.conditions == ("sequence <= 16",)
    assert called(program, *shape).shape == shape


def test_what_torch_works_out_anew_is_no_condition(caplog: pytest.LogCaptureFixture) -> None:
    program = sparsefx.capture(Least(), IDS)
    assert (program.signature.conditions, caplog.messages) == ((), [])
    for size in (1, 12, 13, 40):
        assert called(program, 2, size).shape == (2, min(size, 12))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encoders_have_no_condition(name: str) -> None:
    assert captured(name).signature.conditions == ()


def test_sizes_of_one_name_are_no_condition() -> None:
    class Both(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            if ids.shape[1] != mask.shape[1]:
                return ids * 1.0
            return ids * mask * 1.0

    program = sparsefx.capture(Both(), {**IDS, "mask": torch.ones_like(IDS["ids"])})
    assert program.signature.conditions == ()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("n * m == m * n", True),
        ("3 * (n * m) == m * 3 * n", True),
        ("n * m == n * k", False),
        ("(n + m) * k == n + m * k", False),
        ("n * n == n", False),
    ],
)
def test_a_product_in_another_order_is_the_same(condition: str, expected: bool) -> None:
    assert is_same(condition) is expected


def test_what_cannot_be_checked_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Rooted(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * (1.0 if int(ids.shape[1] ** 0.5) == 2 else 2.0)

    sparsefx.capture(Rooted(), IDS, dynamic={"ids": {1: "sequence"}})
    assert "unchecked: math.trunc(torch.sym_float(L['ids'].size()[1]) ** 0.5) == 2" in caplog.text


def test_bounds_of_an_exported_program_are_kept() -> None:
    length = torch.export.Dim("length", min=4, max=64)
    exported = torch.export.export(
        nn.Softmax(-1), (torch.ones(2, 8),), dynamic_shapes=[{1: length}]
    )
    program = sparsefx.capture(exported)
    assert program.signature.conditions == ("length >= 4", "length <= 64")
    for size in (3, 65):
        with pytest.raises(ProgramError, match=rf"\(length\) is {size}"):
            program(input=torch.ones(2, size))


def test_files_copies_passes_and_targets_keep_conditions(tmp_path: Path) -> None:
    program = sparsefx.capture(Cutting(), IDS)
    loaded = Program.load(program.copy().save(tmp_path / "program"))
    rewriter = Rewriter(loaded, "test")
    rewriter.add_input(InputSpec("other", torch.float32, ("batch",)))
    rewriter.remove_input("other")
    rewriter.set_output("again", loaded.outputs()["output"])
    rewriter.finish()
    for each in (loaded, registry.parse_target("reference").compile(loaded)):
        with pytest.raises(ProgramError, match="sequence <= 16"):
            each(ids=torch.ones(1, 17, dtype=torch.int64))


def test_a_condition_on_an_input_that_is_gone_says_nothing() -> None:
    specs = (InputSpec("ids", torch.float32, ("batch",)),)
    Signature(specs, ("output",), ("sequence <= 3",)).check({"ids": torch.ones(9)})


@pytest.mark.parametrize("name", ["batch-size", "class", ""])
def test_names_of_dimensions_are_names(name: str) -> None:
    with pytest.raises(CaptureError, match="not a name as Python has them"):
        sparsefx.capture(Cutting(), IDS, dynamic={"ids": {0: name}})


@pytest.mark.parametrize(
    ("condition", "sizes", "expected"),
    [
        ("n % 4 == 0", {"n": 8}, True),
        ("not n % 4 == 0", {"n": 8}, False),
        ("n // 4 != 1 and n > 2 or n == -1", {"n": 5}, False),
        ("n % (n // 4) == 0", {"n": 3}, False),  # divided by zero
        ("max(1, n) - min(n, m) * 2 <= n / 3", {"n": 2, "m": 4}, True),
        ("min(max, 4) == max", {"max": 3}, True),  # a name, and no function
    ],
)
def test_conditions_are_calculated(condition: str, sizes: dict[str, int], expected: bool) -> None:
    check_condition(condition)
    assert holds(condition, sizes) is expected
    assert names_in(condition) == sizes.keys()


@pytest.mark.parametrize(
    "condition",
    ["__import__('os')", "n.real", "9 ** n", "n <", "'a' == n", "open(n)", "1 < n < 3", "min(n)"],
)
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(ValueError, match="condition on sizes"):
        Signature((), (), (condition,))


@pytest.mark.parametrize("depth", [2000, 9000])
def test_what_is_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=r"condition on sizes: .* is nested too deeply"):
        Signature((), (), ("-" * depth + "n",))


def test_a_model_without_conditions_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        program = sparsefx.capture(nn.Softmax(-1), {"input": torch.ones(2, 3)})
    assert program.signature.conditions == ()
    assert caplog.messages == []
