"""distill{outputs=...}: which heads are compared."""

from __future__ import annotations

import pytest
import torch

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from tests.passes.distill.students import batch, program_of

HEADED = "mlm-head{seed=%d}"


def headed(seed: int) -> Program:
    return Pipeline.parse(HEADED % seed).run(program_of(seed))


def test_only_the_named_heads_are_compared() -> None:
    given = batch()
    found = {}
    for names in ("logits", "mlm_logits", "('logits','mlm_logits')"):
        joined = Pipeline.parse(f"distill{{outputs={names},temperature=1.0}}").run(
            headed(0), programs={"teacher": headed(1)}
        )
        with torch.no_grad():
            found[names] = float(joined.eval()(**given)["loss"])
    both = found.pop("('logits','mlm_logits')")
    assert both == pytest.approx(sum(found.values()) / 2, rel=1e-5)
    assert found["logits"] != pytest.approx(found["mlm_logits"], rel=1e-3)


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(PassError, match="the student has no output 'mlm_logits' to compare"):
        Pipeline.parse("distill{outputs=mlm_logits}").run(
            program_of(0), programs={"teacher": program_of(1)}
        )
