"""What is said when a graph fails on its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefx import capture, registry
from sparsefx.errors import ProgramError
from sparsefx.inputs.failures import explained
from sparsefx.program import Program
from tests.tiny_models import VOCABULARY, example_batch, tiny


@pytest.fixture(scope="module")
def bert() -> Program:
    return capture(tiny("bert-cls").eval(), example_batch())


def changed(name: str, value: int) -> dict[str, Tensor]:
    batch = {key: tensor.clone() for key, tensor in example_batch().items()}
    batch[name][1, 2] = value
    return batch


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("input_ids", VOCABULARY, f"{VOCABULARY} is outside the table 'bert.embeddings.word"),
        ("input_ids", -3, f"which has {VOCABULARY} rows"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_id_outside_its_table_is_named(
    bert: Program, name: str, value: int, expected: str, compiled: bool
) -> None:
    run = registry.parse_target("reference").compile(bert) if compiled else bert
    with pytest.raises(ProgramError, match=expected) as caught:
        run(**changed(name, value))
    assert caught.value.where == name
    assert "tokenizer" in caught.value.hint
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize(
    "target", ["reference", "onnxruntime", "cpu", "accelerator{arch='a100-fp16'}"]
)
def test_inputs_of_what_is_compiled_are_given_by_name(bert: Program, target: str) -> None:
    compiled: Any = registry.parse_target(target).compile(bert)
    with pytest.raises(ProgramError, match="inputs are given by name") as caught:
        compiled(*example_batch().values())
    named = ", ".join(f"{name}=..." for name in bert.signature.input_names)
    assert caught.value.hint.startswith(f"compiled({named});")


def test_onnxruntime_names_the_id_too(bert: Program) -> None:
    compiled = registry.parse_target("onnxruntime").compile(bert)
    with pytest.raises(ProgramError, match=f"{VOCABULARY} is outside the table") as caught:
        compiled(**changed("input_ids", VOCABULARY))
    assert caught.value.where == "input_ids"


def test_a_sequence_longer_than_the_positions_is_named(bert: Program) -> None:
    long = {name: torch.ones(1, 600, dtype=torch.int64) for name in bert.signature.input_names}
    with pytest.raises(ProgramError, match="600 tokens; the model has positions for 512"):
        bert(**long)


def test_positions_that_are_counted_are_looked_up_too() -> None:
    model = torch.nn.Embedding(8, 4)

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = model

        def forward(self, ids: Tensor) -> Tensor:
            counted: Tensor = self.table(torch.arange(ids.shape[1]))
            return counted + ids.unsqueeze(-1)

    program = capture(Counted().eval(), {"ids": torch.ones(2, 5, dtype=torch.int64)})
    with pytest.raises(ProgramError, match="8 is outside the table") as caught:
        program(ids=torch.ones(2, 9, dtype=torch.int64))
    assert caught.value.where == "%arange"


def test_other_failures_stay_as_they_are(bert: Program) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), explained(bert, example_batch()):
        raise RuntimeError("out of memory")
