"""strip-masked-lm: takes the hiding of tokens and its loss out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

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

    A head that ``mlm-head`` added stays; ``keep-outputs`` removes it. Run it before
    ``strip-distillation``, in the opposite order of the passes that added the losses.

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
        return PassReport(len(drawn))


def _drop_loss(rw: Rewriter) -> None:
    """Take the term out of the sum, and out of the outputs."""
    outputs = rw.program.outputs()
    term, total = outputs[TERM], outputs[LOSS]
    ends: list[fx.Node] = [term, total]
    rw.drop_output(TERM)
    rest = _rest(total, term)
    if rest is None:
        rw.drop_output(LOSS)
    else:
        rw.set_output(LOSS, rest)
    rw.erase_unused(ends)


def _rest(total: fx.Node, term: fx.Node) -> fx.Node | None:
    """Return what the term was added to; None when the loss is the term alone."""
    if total is term or (total.target is aten.mul.Tensor and total.args[0] is term):
        return None
    rest = total.args[0]
    return rest if isinstance(rest, fx.Node) else None
