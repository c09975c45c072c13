"""Tokens that the model does not know must not be read from behind the embedding's table."""

from __future__ import annotations

import pytest
import torch

from sparsefx import registry
from sparsefx.errors import ProgramError
from sparsefx.testing import small_program


class Bag(torch.nn.Module):
    """The smallest encoder: one table and one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 16)
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return one row for each token, of shape [batch, sequence, 16]."""
        row: torch.Tensor = self.linear(self.table(input_ids))
        return row


@pytest.mark.parametrize("token", [-1, 50, 2**33])
def test_an_unknown_token_is_refused(token: int) -> None:
    program = small_program(Bag(), input_ids=torch.zeros(2, 8, dtype=torch.int64)).eval()
    compiled = registry.parse_target("cpu").compile(program)
    ids = torch.randint(50, (2, 8))
    torch.testing.assert_close(compiled(input_ids=ids)["output"], program(input_ids=ids)["output"])
    ids[1, 3] = token
    with pytest.raises(ProgramError, match="an embedding of 50 rows"):
        compiled(input_ids=ids)


def test_fractions_are_no_tokens() -> None:
    program = small_program(Bag(), input_ids=torch.zeros(2, 8, dtype=torch.int64)).eval()
    compiled = registry.parse_target("cpu").compile(program)
    with pytest.raises(ProgramError, match=r"expected input_ids: int64.*, got float32"):
        compiled(input_ids=torch.zeros(2, 8))
