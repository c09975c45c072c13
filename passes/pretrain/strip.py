"""strip-masked-lm: takes the hiding of tokens and its loss out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sparsefx.errors import PassError
from sparsefx.inputs.signature import LOSS
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.pretrain.masked_lm import DRAW, TERM
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["StripMaskedLm"]

aten = torch.ops.aten


@dataclass(frozen=True)
class StripMaskedLm(Pass):
    """Remove what ``masked-lm`` added: tokens are read as they are, and its loss is gone.

    A head that ``mlm-head`` added stays; ``keep-outputs`` removes it. What other passes added to
    the loss stays too.

    Establishes nothing. Skips a Program whose tokens are not hidden.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder("BertForMaskedLM")
    >>> passes = "masked-lm{mask_token=4,special=(0,1)},strip-masked-lm"
    >>> Pipeline.parse(passes).run(program).fingerprint() == program.fingerprint()
    True
    """

    name: ClassVar[str] = "strip-masked-lm"
    changes_signature: ClassVar[bool] = True

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Drop the loss, and give the readers their tokens back."""
        drawn = program.graph.find_nodes(op="call_function", target=DRAW)
        if not drawn:
            return PassReport(0, (Skip("tokens", "none are hidden"),))
        rw = ctx.rewriter
        _drop_loss(rw)
        shown = [
            node
            for node in program.graph.find_nodes(op="call_function", target=aten.where.self)
            if node.args[1] in drawn
        ]
        for node in shown:
            rw.replace(node, node.args[2], erase=False)
        rw.erase_unused(shown)
        _check_none_hidden(program)
        return PassReport(len(drawn))


def _drop_loss(rw: Rewriter) -> None:
    """Take the term out of the sum, and out of the outputs; keep-outputs may have done so."""
    outputs = rw.program.outputs()
    if TERM not in outputs:
        return
    term, total = outputs[TERM], outputs.get(LOSS)
    rw.drop_output(TERM)
    part = next((user for user in term.users if user.target is aten.mul.Tensor), term)
    if part is total:
        rw.drop_output(LOSS)
    sums = [user for user in part.users if user.target is aten.add.Tensor]
    for each in sums:  # other passes may have added to the loss before and since
        first, second = each.args[:2]
        rw.replace(each, second if first is part else first)  # type: ignore[arg-type]  # nodes
    rw.erase_unused([term, part])


def _check_none_hidden(program: Program) -> None:
    for node in program.graph.find_nodes(op="call_function", target=DRAW):
        raise PassError(
            f"something still reads which tokens %{node.name} hides, though {TERM} is no output",
            who=StripMaskedLm.name,
            where=TERM,
            hint=f"keep-outputs has to keep both {LOSS} and {TERM}, or drop both",
        )
