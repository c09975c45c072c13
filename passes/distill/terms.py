"""The terms of a distillation loss: one small function each, listed in ``TERMS``.

A term gets a :class:`~sparsefx.passes.distill.scope.Scope` and returns the node of a scalar. To add
one: write its function, list it, and give ``Distill`` a weight of the same name.

B batch, S sequence, H hidden width, A heads, C classes; s student, t teacher. ``mean`` runs over
all positions, or, with the padding masked, over positions that are no padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.passes.analyses.dataflow import last_dim
from sparsefx.passes.distill.heads import over_positions
from sparsefx.passes.distill.scope import LOWEST_SCORE, Pair, Scope
from sparsefx.passes.loss_terms import SUM, cross_entropy, mean_of_known
from sparsefx.rewrite import Rewriter

__all__ = ["TERMS", "Term"]

aten = torch.ops.aten

_MASKED_SCORE = -1e2  # SparseBERT: what lies below was put there by the padding mask


Term = Callable[[Scope], fx.Node]


def logits(scope: Scope) -> fx.Node:
    """Soft targets: T^2 KL(t || s) (Hinton et al. 2015), or the soft cross-entropy, or MSE.

    kl       T^2 mean_rows sum_c p_t (log p_t - log p_s),   p = softmax(z / T)
    soft-ce  T^2 mean_rows sum_c -p_t log p_s
    bce      T^2 mean_rows sum_c -q_t log q_s - (1 - q_t) log (1 - q_s),   q = sigmoid(z / T)
    mse      mean (z_s - z_t)^2
    cosine   mean_rows 1 - cos(z_s, z_t), for sentence embeddings
    auto     mse for a value [B] or [B, 1], whose soft target would always be 1; bce where a text
             has any number of classes, as kl is the same for logits that are all moved; else kl

    ``logits_mean='batch-and-classes'`` takes the mean over classes in place of the sum, as
    SparseBERT does. Rows are sequences, or tokens for outputs [B, S, C]. Several outputs are
    averaged, as Prune OFA does with start and end of an answer; it adds the two heads of a
    pre-training up, which ``logits=2`` does. Classes of start and end are positions [B, S], and
    with the padding masked none of them is padding.
    """
    parts = []
    for name, ours in scope.logits.items():
        theirs = scope.targets[name]
        if over_positions(name, ours):
            parts.append(_of_positions(scope, ours, theirs))
            continue
        weights = scope.tokens if ours.meta["val"].dim() == 3 else None
        parts.append(_logits(scope, ours, theirs, weights))
    return scope.average(parts)


def _of_positions(scope: Scope, ours: fx.Node, theirs: fx.Node) -> fx.Node:
    if scope.options.logits_loss == "mse":
        error = scope.rw.call(aten.mse_loss.default, ours, theirs, 0)
        return scope.mean(error, scope.tokens)
    if scope.options.logits_loss == "cosine":
        return _logits(scope, ours, theirs, None)
    return _logits(scope, scope.hide_padding(ours), scope.hide_padding(theirs), None)


def _logits(scope: Scope, ours: fx.Node, theirs: fx.Node, weights: fx.Node | None) -> fx.Node:
    options, rw = scope.options, scope.rw
    loss = options.logits_loss
    if loss == "auto":
        loss = "mse" if _is_value(ours) else "bce" if scope.multi_label else "kl"
    if loss == "mse":
        return scope.squared_error(ours, theirs, [-1], weights)
    if loss == "cosine":
        return scope.mean(scope.distance(ours, theirs), weights)
    if loss == "kl":
        rows = scope.divergence(ours, theirs, options.temperature)
    elif loss == "bce":
        rows = _each_class(scope, ours, theirs)
    else:
        log_ours = scope.log_softmax(ours, options.temperature)
        cooled = scope.cooled(theirs, options.temperature)
        soft = rw.call(aten.softmax.int, cooled, -1, torch.float32)
        product = rw.call(aten.mul.Tensor, soft, log_ours)
        rows = rw.call(aten.neg.default, rw.call(aten.sum.dim_IntList, product, [-1]))
    value = scope.mean(rows, weights)
    if options.logits_mean == "batch-and-classes":
        value = rw.call(aten.div.Tensor, value, rw.call(aten.sym_size.int, ours, -1))
    if options.temperature == 1.0:
        return value
    return rw.call(aten.mul.Tensor, value, options.temperature**2)


def _each_class(scope: Scope, ours: fx.Node, theirs: fx.Node) -> fx.Node:
    """Return the cross-entropy of every class, yes or no, added up over the last dimension."""
    rw, temperature = scope.rw, scope.options.temperature
    soft = rw.call(aten.sigmoid.default, scope.cooled(scope.exact(theirs), temperature))
    cooled = scope.cooled(ours, temperature)
    loss = aten.binary_cross_entropy_with_logits.default
    return rw.call(aten.sum.dim_IntList, rw.call(loss, cooled, soft, None, None, 0), [-1])


def labels(scope: Scope) -> fx.Node:
    """Hard labels: cross-entropy with class indices, or MSE with values where there is one class.

    Examples with the label -100, or the value NaN, do not count. Several outputs are averaged.
    """
    parts = []
    for name, ours in scope.logits.items():
        given = scope.labels[name]
        if _is_value(ours):
            parts.append(_value_error(scope.rw, ours, given))
        else:
            parts.append(cross_entropy(scope.rw, ours, given))
    return scope.average(parts)


def _is_value(node: fx.Node) -> bool:
    """Return whether an output holds one value, as [B] or [B, 1], and no classes."""
    return node.meta["val"].dim() == 1 or last_dim(node) == 1


def _value_error(rw: Rewriter, ours: fx.Node, given: fx.Node) -> fx.Node:
    """Return the mean squared error; an example without a value is its own target."""
    values = ours if ours.meta["val"].dim() == 1 else rw.call(aten.squeeze.dim, ours, -1)
    known = rw.call(aten.eq.Tensor, given, given)
    targets = rw.call(aten.where.self, known, given, values)
    return mean_of_known(rw, rw.call(aten.mse_loss.default, values, targets, SUM), known)


def hidden(scope: Scope) -> fx.Node:
    """sum_pairs mean (H_s W + b - H_t)^2 of the layers' outputs; W only where widths differ."""
    parts = []
    for pair in scope.pairs:
        theirs = scope.taught(pair.teacher.hidden)
        ours = scope.project(pair.student.hidden, theirs)
        parts.append(scope.squared_error(ours, theirs, [-1], scope.tokens))
    return scope.total(parts)


def embedding(scope: Scope) -> fx.Node:
    """Mean (E_s W + b - E_t)^2 of what enters the first layer."""
    bottom = scope.ends[0]
    theirs = scope.taught(bottom.teacher.input)
    ours = scope.project(bottom.student.input, theirs)
    return scope.squared_error(ours, theirs, [-1], scope.tokens)


def scores(scope: Scope) -> fx.Node:
    """sum_pairs mean (S_s - S_t)^2 of the scores before softmax, masked entries (<= -1e2) as 0.

    As in SparseBERT and TinyBERT. With the padding masked, only pairs of real tokens count.
    """
    weights, parts = scope.pair_weights(), []
    for pair in scope.pairs:
        ours, theirs = (_unmasked(scope, node, pair) for node in _scores(scope, pair))
        parts.append(scope.squared_error(ours, theirs, [1], weights))
    return scope.total(parts)


def _unmasked(scope: Scope, node: fx.Node, pair: Pair) -> fx.Node:
    masked = scope.rw.call(aten.le.Scalar, node, _MASKED_SCORE)
    return scope.heads_apart(
        scope.rw.call(aten.masked_fill.Scalar, node, masked, 0.0), pair.student.core.heads
    )


def _scores(scope: Scope, pair: Pair) -> tuple[fx.Node, fx.Node]:
    ours, theirs = pair.student.core, pair.teacher.core
    if ours.scores is None or theirs.scores is None:
        raise PassError(
            "attention is fused, its scores cannot be seen",
            who="distill",
            where=pair.where,
            hint="run decompose-attention before distill",
        )
    return ours.scores, scope.taught(theirs.scores)


def probabilities(scope: Scope) -> fx.Node:
    """Attention probabilities P = softmax(S): KL (MiniLM) or MSE.

    kl   sum_pairs 1/(A * rows) sum_heads,rows KL(P_t || P_s)
    mse  sum_pairs mean (P_s - P_t)^2
    """
    parts = []
    for pair in scope.pairs:
        ours, theirs = _scores(scope, pair)
        heads = pair.student.core.heads
        if scope.options.probabilities_loss == "mse":
            ours, theirs = (
                scope.heads_apart(scope.rw.call(aten.softmax.int, node, -1), heads)
                for node in (ours, theirs)
            )
            parts.append(scope.squared_error(ours, theirs, [1], scope.pair_weights()))
        else:
            parts.append(_relation(scope, ours, theirs, heads))
    return scope.total(parts)


def _relation(scope: Scope, ours: fx.Node, theirs: fx.Node, heads: int) -> fx.Node:
    """Return the mean over batch, heads and queries of the divergence of two score matrices."""
    ours, theirs = (
        scope.rw.call(aten.clamp.default, scope.heads_apart(node, heads), LOWEST_SCORE)
        for node in (ours, theirs)
    )
    rows = scope.divergence(ours, theirs)
    if scope.tokens is None:
        return scope.mean(rows, None)
    return scope.mean(scope.rw.call(aten.mean.dim, rows, [1]), scope.tokens)


def value_relation(scope: Scope) -> fx.Node:
    """MiniLM's value relation: the divergence of softmax(V V^T / sqrt(head size)), like scores.

    With the padding masked, padded keys take no part.
    """
    parts = []
    for pair in scope.pairs:
        heads = pair.student.core.heads
        ours = _values_related(scope, pair.student.core.value, heads)
        theirs = _values_related(scope, scope.taught(pair.teacher.core.value), heads)
        parts.append(_relation(scope, ours, theirs, heads))
    return scope.total(parts)


def _values_related(scope: Scope, value: fx.Node, heads: int) -> fx.Node:
    rw = scope.rw
    value = scope.heads_apart(value, heads)
    product = rw.call(aten.matmul.default, value, rw.call(aten.transpose.int, value, -2, -1))
    related = rw.call(aten.mul.Tensor, product, last_dim(value) ** -0.5)
    return scope.hide_padding(related)


def cls(scope: Scope) -> fx.Node:
    """BERT-PKD: mean_pairs mean (h_s - h_t)^2 of the first token, each scaled to length 1."""
    parts = []
    for pair in scope.pairs:
        ours, theirs = (
            _first_token(scope, node)
            for node in (pair.student.hidden, scope.taught(pair.teacher.hidden))
        )
        parts.append(scope.rw.call(aten.mse_loss.default, ours, theirs))
    return scope.average(parts)


def _first_token(scope: Scope, node: fx.Node) -> fx.Node:
    token = scope.rw.call(aten.select.int, node, 1, 0)
    if not scope.options.normalise_cls:
        return token
    token = scope.exact(token)
    norm = scope.rw.call(aten.linalg_vector_norm.default, token, 2.0, [-1], True)
    return scope.rw.call(aten.div.Tensor, token, scope.rw.call(aten.clamp.default, norm, 1e-12))


def cosine(scope: Scope) -> fx.Node:
    """DistilBERT: mean over tokens of 1 - cos(h_s, h_t) of the last hidden states."""
    pair = scope.ends[1]
    ours, theirs = pair.student.hidden, scope.taught(pair.teacher.hidden)
    return scope.mean(scope.distance(ours, theirs), scope.tokens)


TERMS: dict[str, Term] = {
    "logits": logits,
    "labels": labels,
    "hidden": hidden,
    "embedding": embedding,
    "scores": scores,
    "probabilities": probabilities,
    "value_relation": value_relation,
    "cls": cls,
    "cosine": cosine,
}
"""Every term; the name is the weight's name in the options and ``loss.<name>`` in the outputs."""
