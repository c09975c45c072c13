"""What the terms of a distillation loss see, and the arithmetic that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from sparsefx.joined import DISTILL_PREFIX
from sparsefx.passes.analyses.dataflow import last_dim
from sparsefx.passes.analyses.encoder import EncoderLayer
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.passes.distill.distill import Distill

__all__ = ["LOWEST_SCORE", "Pair", "Scope"]

aten = torch.ops.aten

LOWEST_SCORE = -1e4
"""exp of it is 0 in float32; -inf would make 0 * inf of a divergence."""


@dataclass(frozen=True)
class Pair:
    """A student layer and the teacher layer it learns from."""

    student: EncoderLayer
    teacher: EncoderLayer

    @property
    def where(self) -> str:
        """For messages."""
        return f"student layer {self.student.index}, teacher layer {self.teacher.index}"


@dataclass
class Scope:
    """What a term sees.

    Attributes:
        rw: Adds nodes, at a place where all activations are known.
        options: The pass, with its options.
        multi_label: Whether a text has any number of classes.
        logits: The student's logits by output name.
        targets: The teacher's logits under the same names.
        labels: The labels input of each of these; empty without the labels term.
        pairs: Layers that are matched.
        ends: The first layers of both, and the last layers of both.
        taught: Returns the joined copy of a teacher's node.
        tokens: Attention mask as float32 [B, S]; None when padding counts like any token.
    """

    rw: Rewriter
    options: Distill
    multi_label: bool
    logits: dict[str, fx.Node]
    targets: dict[str, fx.Node]
    labels: dict[str, fx.Node]
    pairs: tuple[Pair, ...]
    ends: tuple[Pair, ...]
    taught: Callable[[fx.Node], fx.Node]
    tokens: fx.Node | None
    _counts: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _projection: tuple[fx.Node, fx.Node] | None = None

    # -- arithmetic ------------------------------------------------------------------------------

    def total(self, parts: list[fx.Node]) -> fx.Node:
        """Return the sum of scalars."""
        result = parts[0]
        for part in parts[1:]:
            result = self.rw.call(aten.add.Tensor, result, part)
        return result

    def average(self, parts: list[fx.Node]) -> fx.Node:
        """Return the mean of scalars."""
        total = self.total(parts)
        return total if len(parts) == 1 else self.rw.call(aten.div.Tensor, total, len(parts))

    def mean(self, values: fx.Node, weights: fx.Node | None) -> fx.Node:
        """Return the mean of ``values``, or the mean weighted by 0 and 1."""
        if weights is None:
            return self.rw.call(aten.mean.default, values)
        weighted = self.rw.call(aten.mul.Tensor, values, weights)
        total = self.rw.call(aten.sum.default, weighted)
        return self.rw.call(aten.div.Tensor, total, self._count(weights))

    def _count(self, weights: fx.Node) -> fx.Node:
        if weights not in self._counts:
            total = self.rw.call(aten.sum.default, weights)
            self._counts[weights] = self.rw.call(aten.clamp.default, total, 1.0)
        return self._counts[weights]

    def squared_error(
        self, ours: fx.Node, theirs: fx.Node, dims: list[int], weights: fx.Node | None
    ) -> fx.Node:
        """Return the mean squared error; ``weights`` are for what is left after ``dims``."""
        if weights is None:
            return self.rw.call(aten.mse_loss.default, ours, theirs)
        error = self.rw.call(aten.mse_loss.default, ours, theirs, 0)
        return self.mean(self.rw.call(aten.mean.dim, error, dims), weights)

    def divergence(self, ours: fx.Node, theirs: fx.Node, temperature: float = 1.0) -> fx.Node:
        """Return KL(softmax(theirs / T) || softmax(ours / T)) over the last dimension."""
        log_ours, log_theirs = (self.log_softmax(node, temperature) for node in (ours, theirs))
        rows = self.rw.call(aten.kl_div.default, log_ours, log_theirs, 0, log_target=True)
        return self.rw.call(aten.sum.dim_IntList, rows, [-1])

    def distance(self, ours: fx.Node, theirs: fx.Node) -> fx.Node:
        """Return 1 - cos(ours, theirs) over the last dimension, in fp32 as ``log_softmax`` is.

        Next to 1 bf16 has steps of 0.4 %, and what is left to learn lies below that.
        """
        ours, theirs = self.exact(ours), self.exact(theirs)
        similar = self.rw.call(aten.cosine_similarity.default, ours, theirs, -1)
        return self.rw.call(aten.rsub.Scalar, similar, 1)

    def log_softmax(self, node: fx.Node, temperature: float) -> fx.Node:
        """Return log softmax(node / T) over the last dimension, in fp32 under autocast too.

        In bf16 it has steps of 0.4 %: a divergence below that would be noise, or negative.
        """
        cooled = self.cooled(node, temperature)
        return self.rw.call(aten.log_softmax.int, cooled, -1, torch.float32)

    def exact(self, node: fx.Node) -> fx.Node:
        """Return a node in fp32, for what autocast would compute in bf16."""
        return self.rw.call(aten.to.dtype, node, torch.float32)

    def cooled(self, node: fx.Node, temperature: float) -> fx.Node:
        """Return node / T."""
        if temperature == 1.0:
            return node
        return self.rw.call(aten.div.Tensor, node, temperature)

    # -- attention -------------------------------------------------------------------------------

    def heads_apart(self, node: fx.Node, heads: int) -> fx.Node:
        """Return [B, A, S, x] for what may have batch and heads merged."""
        if node.meta["val"].dim() == 4:
            return node
        return self.rw.call(aten.unflatten.int, node, 0, [-1, heads])

    def hide_padding(self, scores: fx.Node) -> fx.Node:
        """Return [B, ..., S] with scores of padding so low that softmax makes 0 of them."""
        if self.tokens is None:
            return scores
        padding = self.rw.call(aten.eq.Scalar, self.tokens, 0)
        for _ in range(scores.meta["val"].dim() - 2):
            padding = self.rw.call(aten.unsqueeze.default, padding, 1)
        return self.rw.call(aten.masked_fill.Scalar, scores, padding, LOWEST_SCORE)

    def pair_weights(self) -> fx.Node | None:
        """Return [B, S, S] that is 1 where query and key are no padding."""
        if self.tokens is None:
            return None
        queries = self.rw.call(aten.unsqueeze.default, self.tokens, 2)
        return self.rw.call(
            aten.mul.Tensor, queries, self.rw.call(aten.unsqueeze.default, self.tokens, 1)
        )

    # -- widths ----------------------------------------------------------------------------------

    def project(self, ours: fx.Node, theirs: fx.Node) -> fx.Node:
        """Return ``ours`` [B, S, Hs] at the width of ``theirs``.

        Where widths differ, one linear, shared by all layers as in TinyBERT, is learned with the
        student and removed by ``strip-distillation``.
        """
        narrow, wide = last_dim(ours), last_dim(theirs)
        if narrow == wide:
            return ours
        if self._projection is None:
            device = self.rw.program.device
            weight, bias = _initial(narrow, wide, self.options.seed)
            self._projection = (
                self.rw.add_parameter(f"{DISTILL_PREFIX}projection.weight", weight.to(device)),
                self.rw.add_parameter(f"{DISTILL_PREFIX}projection.bias", bias.to(device)),
            )
        return self.rw.call(aten.linear.default, ours, *self._projection)


def _initial(narrow: int, wide: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias as ``nn.Linear`` begins, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    bound = narrow**-0.5
    weight = torch.empty(wide, narrow).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(wide).uniform_(-bound, bound, generator=generator)
