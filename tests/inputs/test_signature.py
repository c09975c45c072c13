"""Batches that do not fit a Program are refused by name."""

from __future__ import annotations

import pytest

from sparsefx.errors import ProgramError
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
