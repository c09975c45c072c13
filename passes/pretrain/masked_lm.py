"""masked-lm: tokens are hidden, and the loss is how well the model guesses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.loss_terms import IGNORED, add_term, cross_entropy
from sparsefx.passes.pretrain.vocabulary import masked_lm_output, token_table
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sparsefx.program import Program

__all__ = ["DRAW", "TERM", "MaskedLm"]

aten = torch.ops.aten

DRAW = torch.ops.sparsefx.draw_masked.default
TERM = "loss.masked_lm"


@dataclass(frozen=True)
class MaskedLm(Pass):
    """Hide tokens of every batch, and add the loss of guessing them.

    Each token that is not special is chosen with ``probability``; of those, 80 % are shown as the
    mask token, 10 % as a random token, 10 % as they are (Devlin et al. 2019, section 3.1):

        L = mean over chosen tokens of -log softmax(z)[token]

    The draws are a node of the graph that takes PyTorch's generator, as dropout does: seeding makes
    them repeatable, and what restores the generator's state resumes them. They are made in
    evaluation too, so that the loss can be measured on text that was held back. Everything that
    read the token ids reads the shown tokens, a teacher that ``distill`` joined before included;
    so run ``distill`` first. Adds ``weight * L`` to the output ``loss``, which it makes when there
    is none, and returns L as ``loss.masked_lm``. ``strip-masked-lm`` takes it out again.

    Establishes nothing. Skips a Program whose tokens are hidden already; refuses a model whose
    padding token, which its configuration tells, is not among ``special``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program, ids = small_encoder("BertForMaskedLM"), torch.randint(5, 20, (4, 8))
    >>> trained = Pipeline.parse("masked-lm{mask_token=4,special=(0,1,2,3)}").run(program)
    >>> sorted(trained(input_ids=ids))
    ['logits', 'loss', 'loss.masked_lm']

    Attributes:
        weight: Of the term in the loss.
        probability: Share of tokens that are chosen.
        mask_token: Id of the mask token; the default is BERT's.
        special: Ids that are never chosen; the default is BERT's padding, unknown, [CLS], [SEP].
    """

    name: ClassVar[str] = "masked-lm"
    changes_signature: ClassVar[bool] = True

    weight: float = 1.0
    probability: float = 0.15
    mask_token: int = 103
    special: tuple[int, ...] = (0, 100, 101, 102)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.special, int):
            object.__setattr__(self, "special", (self.special,))
        if not 0.0 < self.probability <= 1.0:
            raise self.refuse("probability", "expected a share above 0, at most 1")
        if not self.weight > 0:
            raise self.refuse("weight", "expected a number above 0")
        if self.mask_token < 0:
            raise self.refuse("mask_token", "expected a token id")

    def check_programs(self, program: Program, programs: Mapping[str, Program]) -> None:
        """Check that tokens enter and are predicted, and that the ids are of this vocabulary."""
        if not _hides(program):
            self._sites(program)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Put the draw behind the input, and the loss behind the output."""
        if _hides(program):
            return PassReport(0, (Skip("tokens", "they are hidden already"),))
        rw = ctx.rewriter
        tokens, rows, output = self._sites(program)
        drawn, chosen = self._hide(rw, tokens, rows)
        with rw.before(program.graph.output_node()):
            known = rw.call(aten.where.ScalarOther, chosen, tokens, IGNORED)
            term = cross_entropy(rw, program.outputs()[output], known)
            add_term(rw, TERM, term, self.weight)
        return PassReport(1, notes=(f"%{drawn.name} hides tokens of {tokens.target}",))

    def _sites(self, program: Program) -> tuple[fx.Node, int, str]:
        """Return the input of token ids, how many there are, and the output that predicts them."""
        tokens, table = token_table(program, who=self.name)
        output = masked_lm_output(program)
        if output is None:
            raise PassError(
                f"no output predicts tokens; it returns {', '.join(program.signature.outputs)}",
                who=self.name,
                hint="run mlm-head before it, or capture a model for masked tokens",
            )
        rows = program.tensor(table).shape[0]
        if self.mask_token >= rows:
            raise PassError(
                f"mask_token={self.mask_token} is none of the {rows} tokens of the model",
                who=self.name,
                where="mask_token",
                hint="give the id of the mask token of the model's tokenizer",
            )
        self._check_padding(program)
        return tokens, rows, output

    def _check_padding(self, program: Program) -> None:
        """Refuse ids of another vocabulary, which the padding token gives away."""
        padding = program.config.get("pad_token_id")
        if padding is not None and padding not in self.special:
            raise PassError(
                f"the model pads with token {padding}, which special={self.special} does not name",
                who=self.name,
                where="special",
                hint="give mask_token and special of the model's own tokenizer",
            )

    def _hide(self, rw: Rewriter, tokens: fx.Node, rows: int) -> tuple[fx.Node, fx.Node]:
        """Let all readers of the tokens see what is shown; return the draw and who was chosen."""
        readers = list(tokens.users)
        with rw.before(min(readers)):
            options = (self.probability, self.mask_token, rows, list(self.special))
            drawn = rw.call(DRAW, tokens, *options)
            chosen = rw.call(aten.ge.Scalar, drawn, 0)
            shown = rw.call(aten.where.self, chosen, drawn, tokens)
        for reader in readers:
            rw.replace_input(reader, tokens, shown)
        return drawn, chosen


def _hides(program: Program) -> bool:
    return bool(program.graph.find_nodes(op="call_function", target=DRAW))
