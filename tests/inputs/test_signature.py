"""Batches that do not fit a Program are refused by name."""

from __future__ import annotations

import pytest
import torch

from sparsefx.errors import ProgramError
from sparsefx.inputs.signature import Dim, InputSpec, Signature
from tests.programs import captured
from tests.tiny_models import example_batch


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda b: b.pop("attention_mask"), "the input 'attention_mask' is missing"),
        (lambda b: b.update(token_type_ids=b["input_ids"]), "there is no input 'token_type_ids'"),
        (lambda b: b.update(input_ids=b["input_ids"][0]), "expected 2 dimensions"),
        (lambda b: b.update(input_ids=b["input_ids"][:1]), "batch is 1 in input_ids"),
        (lambda b: b.update(input_ids=b["input_ids"].int()), "got int32"),
        (lambda b: b.update(attention_mask=b["attention_mask"].bool()), "got bool"),
        (lambda b: b.update(input_ids=b["input_ids"].numpy()), "hint: torch.from_numpy(input_ids)"),
        (lambda b: b.update(input_ids=b["input_ids"].tolist()), "hint: torch.tensor(input_ids)"),
        (lambda b: b.update(attention_mask=None), "hint: pass every input"),
        (lambda b: b.update({k: v[:0] for k, v in b.items()}), "dimension 'batch' is empty"),
    ],
)
def test_wrong_batches_are_refused(change, expected: str) -> None:  # type: ignore[no-untyped-def]
    program = captured("bert-cls")
    batch = example_batch()
    change(batch)
    with pytest.raises(ProgramError) as caught:
        program(**batch)
    assert expected in str(caught.value)


def test_inputs_are_given_by_name() -> None:
    program = captured("bert-cls")
    with pytest.raises(ProgramError, match=r"program\(input_ids=..., attention_mask=...\)"):
        program(example_batch()["input_ids"])
    with pytest.raises(ProgramError, match="inputs are given by name"):
        program(example_batch())


def signature(*dims: Dim, conditions: tuple[str, ...] = ()) -> Signature:
    features = InputSpec("features", torch.float32, (dims[0], 10))
    return Signature((features, InputSpec("ids", torch.int64, dims)), ("output",), conditions)


def test_sizes_are_those_of_tokens_whatever_their_names() -> None:
    assert signature("n", "length").sizes(2, 16) == {"n": 2, "length": 16}
    assert signature("batch", 8).sizes(2, 16) == {"batch": 2}
    assert signature("batch", 8).taken(2, 16) == (2, 8)
    assert Signature((), ()).sizes(2, 16) == {"batch": 2, "sequence": 16}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (signature("batch", 8), "it takes 2 x 8 tokens alone, not 2 x 18"),
        (signature("n", "m", conditions=("m % 4 == 0",)), r"ids \(m\) is 18, .* m % 4 == 0 alone"),
    ],
)
def test_sizes_that_it_does_not_take_are_refused(known: Signature, expected: str) -> None:
    known.check_taken(2, 8)
    with pytest.raises(ProgramError, match=expected):
        known.check_taken(2, 18)
