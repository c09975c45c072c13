"""pool-sentences: an encoder of tokens becomes one of sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.inputs.signature import SENTENCE_MODULES, SENTENCE_OUTPUT
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.padding import marks_tokens
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["PoolSentences"]

aten = torch.ops.aten
_STATES = "last_hidden_state"


@dataclass(frozen=True)
class PoolSentences(Pass):
    """Return one vector for each sentence in place of all that the model returned.

        mean   e = sum_t m_t h_t / max(sum_t m_t, 1e-9)     m the attention mask
        cls    e = h_0
        then, if normalised,  e / max(|e|, 1e-12)

    This is what the modules Pooling and Normalize of sentence-transformers compute (Reimers and
    Gurevych 2019, section 3). Heads and poolers that nothing reads any more are removed. The only
    output is ``sentence_embedding``, [batch, hidden], so that ``distill`` compares the embeddings:
    ``distill{logits_loss='cosine'}``.

    Establishes nothing. Skips a graph that returns sentence embeddings already, and one without
    last hidden states, or without an attention mask that is 1 for tokens and 0 for padding.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> program = small_program(
    ...     lambda states: {"last_hidden_state": states.relu()}, states=torch.ones(2, 3, 4)
    ... )
    >>> pooled = Pipeline.parse("pool-sentences{pooling='cls',normalise=False}").run(program)
    >>> print(graph_text(pooled), end="")
    %relu = aten.relu(%states)
    %select = aten.select.int(%relu, 1, 0)
    %to = aten.to.dtype(%select, float32)
    return {sentence_embedding: %to}

    Attributes:
        pooling: ``mean`` over the tokens that are no padding, or ``cls``, the first token. ``auto``
            is what the folder of the model says to sentence-transformers, else ``mean``.
        normalise: Scale every vector to length 1. ``auto`` is what the folder says, else True.

    Raises:
        PassError: The folder has other modules (Dense, pooling by max), and an option is ``auto``.
    """

    name: ClassVar[str] = "pool-sentences"
    changes_signature: ClassVar[bool] = True
    drops_heads: ClassVar[bool] = True

    pooling: Literal["auto", "mean", "cls"] = "auto"
    normalise: Literal["auto"] | bool = "auto"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Pool, and remove what only the former outputs needed."""
        rw = ctx.rewriter
        former = program.outputs()
        if SENTENCE_OUTPUT in former:
            return PassReport(0, (Skip(SENTENCE_OUTPUT, "it is returned already"),))
        states = _last_states(program, former)
        if isinstance(states, Skip):
            return PassReport(0, (states,))
        pooling, normalise = self._chosen(program)
        mask = _mask(program) if pooling == "mean" else None
        if isinstance(mask, Skip):
            return PassReport(0, (mask,))
        with rw.before(program.graph.output_node()):
            pooled = _first(rw, states) if mask is None else _mean(rw, states, mask)
            if normalise:
                norm = rw.call(aten.linalg_vector_norm.default, pooled, 2.0, [-1], True)
                pooled = rw.call(aten.div.Tensor, pooled, rw.call(aten.clamp.default, norm, 1e-12))
        rw.set_output(SENTENCE_OUTPUT, pooled)
        for name in former:
            rw.drop_output(name)
        count = rw.erase_unused(former.values())
        said = program.config.get(SENTENCE_MODULES, {})
        told = {"pooling": pooling, "normalise": normalise, "lacks": []}
        program.config[SENTENCE_MODULES] = {**said, **told}
        how = f"{pooling} pooling, {'' if normalise else 'not '}normalised"
        why = "as its folder says" if said else "its folder says nothing"
        removed = f"{count} nodes that nothing reads any more were removed"
        return PassReport(1, notes=(f"{how}: {why}" if self._asks else how, removed))

    @property
    def _asks(self) -> bool:
        return "auto" in (self.pooling, self.normalise)

    def _chosen(self, program: Program) -> tuple[str, bool]:
        """Return the pooling, and whether vectors are normalised."""
        said = program.config.get(SENTENCE_MODULES, {})
        if self._asks and said.get("lacks"):
            raise PassError(
                f"the folder of the model has what this pass does not: {', '.join(said['lacks'])}",
                hint="pool-sentences{pooling='mean',normalise=True} embeds without it; the vectors "
                "are then others than those of the model",
            )
        pooling = said.get("pooling", "mean") if self.pooling == "auto" else self.pooling
        normalise = said.get("normalise", True) if self.normalise == "auto" else self.normalise
        return pooling, normalise


def _last_states(program: Program, outputs: dict[str, fx.Node]) -> fx.Node | Skip:
    if _STATES in outputs:
        return outputs[_STATES]
    layers = program.facts(EncoderStructure).layers
    if not layers:
        return Skip(_STATES, "it is not returned, and no encoder layer was found")
    if layers[-1].norm == "pre":
        return Skip(_STATES, "it is not returned, and a final norm follows the last layer")
    return layers[-1].hidden


def _mask(program: Program) -> fx.Node | Skip:
    name = program.facts(EncoderStructure).attention_mask or "attention_mask"
    for node in program.graph.find_nodes(op="placeholder", target=name):
        if node.meta["val"].dim() != 2 or not marks_tokens(program, name):
            return Skip(name, "it is not 1 for tokens and 0 for padding, [batch, sequence]")
        found: fx.Node = node
        return found
    return Skip("attention_mask", "no input says what is padding")


def _first(rw: Rewriter, states: fx.Node) -> fx.Node:
    # In bf16, what autocast makes of states, a vector of length 1 is one to 0.4 % alone.
    return rw.call(aten.to.dtype, rw.call(aten.select.int, states, 1, 0), torch.float32)


def _mean(rw: Rewriter, states: fx.Node, mask: fx.Node) -> fx.Node:
    weights = rw.call(aten.unsqueeze.default, rw.call(aten.to.dtype, mask, torch.float32), -1)
    total = rw.call(aten.sum.dim_IntList, rw.call(aten.mul.Tensor, states, weights), [1])
    count = rw.call(aten.clamp.default, rw.call(aten.sum.dim_IntList, weights, [1]), 1e-9)
    return rw.call(aten.div.Tensor, total, count)
