"""What lowering does with each operator. A handler returns why it did not take a node, or None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from sparsefx.backends.cpu.analyses.axes import SEQUENCE
from sparsefx.backends.cpu.analyses.graphs import (
    ACTIVATIONS,
    IDENTITIES,
    identity_source,
    integer,
)
from sparsefx.backends.cpu.analyses.layouts import MOVES
from sparsefx.backends.cpu.analyses.means import Mean
from sparsefx.backends.cpu.analyses.norms import RmsNorm
from sparsefx.backends.cpu.analyses.positions import position_table
from sparsefx.backends.cpu.analyses.rotary import Rotation
from sparsefx.backends.cpu.analyses.spelled import Spelled
from sparsefx.backends.cpu.analyses.tables import stored_table
from sparsefx.backends.cpu.analyses.values import (
    Embedded,
    Length,
    Octets,
    Relative,
    Rows,
    Scaled,
    Scores,
    Table,
    Value,
)
from sparsefx.backends.cpu.kernels.norm import CHUNKS
from sparsefx.backends.cpu.lowering.attending import AttentionLowering
from sparsefx.backends.cpu.lowering.linears import LinearLowering
from sparsefx.backends.cpu.lowering.pooling import PoolingLowering
from sparsefx.backends.cpu.lowering.walk import Walk
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import SEQUENCES, TOKENS, Buffer, Step, Word

__all__ = ["handlers"]

aten = torch.ops.aten

Handler = Callable[[fx.Node], str | None]


def handlers(walk: Walk) -> dict[Any, Handler]:
    """The handler of each operator, and of each kind of what is tried on numbers."""
    operators = _Operators(walk)
    attention = operators.attention
    table: dict[Any, Handler] = dict.fromkeys(MOVES, operators.move)
    table |= dict.fromkeys(IDENTITIES, operators.same)
    table |= dict.fromkeys(ACTIVATIONS, operators.activation)
    table |= {
        aten.embedding.default: operators.embedding,
        aten.linear.default: operators.linears.lower,
        aten.layer_norm.default: operators.norm,
        aten.add.Tensor: operators.add,
        aten.mul.Tensor: operators.multiply,
        aten.div.Tensor: operators.divide,
        aten.scaled_dot_product_attention.default: attention.fused,
        aten.matmul.default: attention.product,
        aten.bmm.default: attention.product,
        aten.baddbmm.default: attention.masked_product,
        aten.masked_fill.Scalar: attention.filled,
        aten.masked_fill.Tensor: attention.filled,
        aten.where.self: attention.chosen,
        aten.where.ScalarOther: attention.chosen,
        aten.softmax.int: attention.softmax,
        aten.gather.default: attention.gathered,
        Mean: operators.pooling.mean,
        aten.sum.dim_IntList: operators.pooling.summed,
        aten.mean.dim: operators.pooling.summed,
        aten.amax.default: operators.pooling.greatest,
        aten.max.dim: operators.pooling.greatest,
        aten.linalg_vector_norm.default: operators.pooling.length,
        aten.clamp.default: operators.pooling.at_least,
        aten.clamp_min.default: operators.pooling.at_least,
        aten.expand_as.default: operators.pooling.widened,
        Rotation: operators.rotate,
        RmsNorm: operators.rms_norm,
        Spelled: operators.activation,
        torch.ops.sparsefx.quantize.default: operators.quantize,
        torch.ops.sparsefx.dequantize.default: operators.dequantize,
    }
    return table


class _Operators:
    """Handlers that share the walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.linears = LinearLowering(walk)
        self.attention = AttentionLowering(walk)
        self.pooling = PoolingLowering(walk)

    # shapes

    def same(self, node: fx.Node) -> str | None:
        """Dropout in eval mode, contiguous, slices, conversions to the same type."""
        source = identity_source(node)
        if source is None and node in self._walk.layouts:
            return self.move(node)
        if source is None:
            return f"{node.target} changes its input"
        return self._alias(node, source)

    def move(self, node: fx.Node) -> str | None:
        """Another layout of the same rows: views, transposes, cuts of channels."""
        source = node.args[0]
        value, layout = self._walk.value(source), self._walk.layout(source)
        if value is None:
            return self._walk.unread(source)
        if isinstance(value, (Scores, Relative)):
            return self.attention.moved(node, value)
        if node not in self._walk.layouts:
            what = str(node.target).removeprefix("aten.").split(".")[0]
            return f"a {what} that is neither heads nor channels"
        selects = node.target is aten.select.int and layout is not None
        if selects and layout and layout.dims[integer(node.args[1])] == (SEQUENCE,):
            return self._first_token(node)
        self._walk.values[node] = value
        return None

    def _first_token(self, node: fx.Node) -> str | None:
        """The first token of every sequence."""
        walk = self._walk
        source = walk.written(node.args[0])
        if source is None or source.buffer.space != TOKENS:
            return walk.unread(node.args[0])
        target = Buffer(node.name, source.buffer.rows, 4, SEQUENCES)
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": source.buffer,
            "output": target,
        }
        walk.steps.append(Step(catalog.other("pick"), words, node.name))
        walk.values[node] = Rows(target, source.first)
        return None

    def _alias(self, node: fx.Node, source: fx.Node) -> str | None:
        value = self._walk.value(source)
        if value is None:
            return self._walk.unread(source)
        self._walk.values[node] = value
        return None

    # elementwise

    def embedding(self, node: fx.Node) -> str | None:
        """One table; written when its sum is complete."""
        table, index = node.args[:2]
        assert isinstance(table, fx.Node)
        stored = stored_table(self._walk.host, table)
        if stored is None:
            return "its table depends on an input"
        if not isinstance(index, fx.Node) or index not in self._walk.host.nodes:
            return "its index depends on activations"
        if not self._walk.host.is_per_token(index):
            return "its index is not [batch, sequence]"
        self._walk.values[node] = Embedded((stored,), (index,))
        return None

    def add(self, node: fx.Node) -> str | None:
        """Embeddings, an attention mask, or two rows."""
        walk = self._walk
        left, right = (walk.value(n) for n in node.args[:2])
        if node.kwargs.get("alpha", 1) != 1:
            return "an addition with a factor"
        nothing = next((n for n in node.args[:2] if isinstance(n, (int, float)) and n == 0), None)
        if nothing is not None:
            return self._alias(node, next(n for n in node.args[:2] if isinstance(n, fx.Node)))
        if left and right and (isinstance(left, Relative) or isinstance(right, Relative)):
            return self.attention.joined(node, left, right)
        if isinstance(left, Embedded) and isinstance(right, Embedded):
            walk.values[node] = Embedded(left.tables + right.tables, left.indices + right.indices)
            return None
        if isinstance(left, Scores) and right is None:
            return self.attention.masked(node, node.args[1])
        if isinstance(right, Scores) and left is None:
            return self.attention.masked(node, node.args[0])
        if isinstance(left, Embedded) and right is None:
            table = position_table(walk.host, node.args[1], node)
            if table is None:
                return "adds to embeddings what is no table of positions"
            walk.values[node] = Embedded((*left.tables, Table(table)), (*left.indices, None))
            return None
        return self._both("add", node)

    def multiply(self, node: fx.Node) -> str | None:
        """A number, or two rows, as gates have them."""
        walk = self._walk
        known = [n for n in node.args[:2] if walk.value(n) is not None]
        if not known:
            return walk.unread(node.args[0])
        if len(known) == 2:
            return self._both("mul", node)
        (other,) = (n for n in node.args[:2] if n is not known[0])
        divides = node.target is aten.div.Tensor
        number = walk.number(other)
        states = known[0]
        if number is None and not divides and self.pooling.blanked(node, states, other):
            return None
        if number is None or (divides and other is node.args[0]):
            return "a factor that is not a number"
        if divides and number == 0:
            return "a division by zero"
        return self._scaled(node, walk.value(known[0]), 1 / number if divides else number)

    def _scaled(self, node: fx.Node, value: Value | None, factor: float) -> str | None:
        values = self._walk.values
        if isinstance(value, Scores) and not value.masks and not value.weights:
            relative = value.relative.scaled(factor)
            values[node] = replace(value, scale=value.scale * factor, relative=relative)
        elif isinstance(value, Relative):
            values[node] = value.scaled(factor)
        elif isinstance(value, Embedded):
            values[node] = Embedded(tuple(t.scaled(factor) for t in value.tables), value.indices)
        elif isinstance(value, Scaled):
            values[node] = replace(value, factor=value.factor * factor)
        elif isinstance(value, Rows):
            values[node] = Scaled(value, factor)
        else:
            return "a factor on something else than scores"
        return None

    def divide(self, node: fx.Node) -> str | None:
        """Division by a number, or by a length."""
        divisor = self._walk.value(node.args[1])
        if isinstance(divisor, Length):
            return self.pooling.unit(node, divisor)
        both = all(self._walk.value(n) is not None for n in node.args[:2])
        return "a quotient of two values" if both else self.multiply(node)

    def _both(self, operation: str, node: fx.Node) -> str | None:
        """`add` or `mul` of two values that are rows of the same shape."""
        walk = self._walk
        if walk.layout(node) is None:
            return f"{operation} of other shapes than tokens by channels"
        a, b = (walk.rows(n) for n in node.args[:2])
        if a is None or b is None:
            return walk.unread(node.args[0] if a is None else node.args[1])
        if a.buffer.rows != b.buffer.rows or a.buffer.space != b.buffer.space:
            return f"{operation} broadcasts"
        self._elementwise(operation, node, a, b)
        return None

    def activation(self, node: fx.Node) -> str | None:
        """An activation that no linear took along."""
        walk = self._walk
        before = walk.tried[node].source if node in walk.tried else node.args[0]
        source = walk.rows(before)
        if source is None:
            return walk.unread(before)
        self._elementwise(walk.activation(node), node, source, source)
        return None

    def _elementwise(self, operation: str, node: fx.Node, a: Rows, b: Rows) -> None:
        target = Buffer(node.name, a.buffer.rows, 4, a.buffer.space)
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": a.buffer,
            "other": b.buffer,
            "output": target,
            "space": target.space,
        }
        self._walk.steps.append(Step(catalog.elementwise(operation), words, node.name))
        self._walk.own(node, target)

    def norm(self, node: fx.Node) -> str | None:
        """Layer norm over the channels, with the quantize after it."""
        source = self._walk.rows(node.args[0])
        if source is None:
            return self._walk.unread(node.args[0])
        _, shape, weight, bias, epsilon = (*node.args, None, None, 1e-5)[:5]
        channels = source.buffer.rows
        if list(shape) != [channels]:  # type: ignore[arg-type]  # a list of sizes
            return "a norm over more than the channels"
        words: dict[str, Word] = {
            "weight": self._vector(weight, channels, 1.0),
            "bias": self._vector(bias, channels, 0.0),
            "epsilon": float(epsilon),  # type: ignore[arg-type]
        }
        self._normed(node, source, words)
        return None

    def rms_norm(self, node: fx.Node) -> str | None:
        """RMS norm over the channels, with the quantize after it; see `norms`."""
        found = self._walk.tried[node]
        assert isinstance(found, RmsNorm), node
        source = self._walk.rows(found.source)
        if source is None:
            return self._walk.unread(found.source)
        weight = np.ascontiguousarray(found.weight.numpy())
        self._normed(node, source, {"weight": weight, "epsilon": found.epsilon})
        return None

    def _normed(self, node: fx.Node, source: Rows, own: dict[str, Word]) -> None:
        """A norm with words of its own, an RMS norm where no bias is among them."""
        walk = self._walk
        channels, space = source.buffer.rows, source.buffer.space
        floats, quantizes, octets = self.linears.around.sinks(node, channels, space)
        sums = Buffer(f"{node.name} sums", 2 * CHUNKS, 4, space)
        shared: dict[str, Any] = {"rows": channels, "input": source.buffer, "sums": sums}
        shared["space"] = space
        words = {**shared, **own}
        if floats:
            words["output"] = Buffer(node.name, channels, 4, space)
            walk.own(node, words["output"])
        if octets is not None:
            words["output_bytes"] = octets.buffer
            words["inverse_scale"] = 1.0 / octets.scale
            words["zero_point"] = octets.zero_point
            walk.values |= dict.fromkeys(quantizes, octets)
        centred = "bias" in own
        kernel = catalog.norm_kernel(floats=floats, octets=octets is not None, centred=centred)
        before = catalog.other("norm_sums" if centred else "rms_norm_sums")
        walk.steps += [Step(before, shared, node.name), Step(kernel, words, node.name)]
        walk.taken.add(node)

    def _vector(self, node: object, channels: int, default: float) -> np.ndarray[Any, Any]:
        value = self._walk.host.constant(node) if isinstance(node, fx.Node) else None
        if value is None:
            return np.full(channels, default, np.float32)
        return np.ascontiguousarray(value.detach().float().numpy())

    def rotate(self, node: fx.Node) -> str | None:
        """Heads turned by their positions; the factors are written once."""
        walk = self._walk
        found = walk.tried[node]
        assert isinstance(found, Rotation), node
        value, before = walk.value(found.source), walk.layout(found.source)
        rows = value.rows if isinstance(value, Scaled) else value
        heads = before.turned_heads() if before is not None else None
        if not isinstance(rows, Rows) or before is None or heads is None:
            what = "a rotation of something else than heads"
            return walk.unread(found.source) if value is None else what
        if rows.code is not None or rows.kept is not None or rows.buffer.space != TOKENS:
            return "a rotation of codes, or of parts"
        count, size = heads
        target = Buffer(node.name, count * size, 4)
        words: dict[str, Word] = {
            "heads": count,
            "head_size": size,
            "input": rows.buffer,
            "input_rows": rows.buffer.rows,
            "first": rows.first + before.first,
            "factors": walk.forms.embedding(found.turn.table).buffer,
            "partner": found.turn.partner,
            "output": target,
        }
        walk.steps.append(Step(catalog.other("rotate"), words, node.name))
        turned = Rows(target)
        walk.values[node] = replace(value, rows=turned) if isinstance(value, Scaled) else turned
        return None

    def quantize(self, node: fx.Node) -> str | None:
        """uint8 rows from fp32 rows that were written."""
        walk = self._walk
        source = walk.rows(node.args[0]) or self._partial(node.args[0])
        if source is None:
            return walk.unread(node.args[0])
        parameters = walk.quantization(node)
        if parameters is None:
            return "not uint8 0..255 with one scale"
        walk.values[node] = walk.forms.quantized(source, node.name, *parameters)
        return None

    def _partial(self, node: object) -> Rows | None:
        """Rows of a node that holds some of its channels alone, as attention without dead heads."""
        value, layout = self._walk.value(node), self._walk.layout(node)
        kept = isinstance(value, Rows) and value.kept is not None and value.first == 0
        plain = layout is not None and layout.first == 0 and layout.plain is not None
        return value if kept and plain and isinstance(value, Rows) else None

    def dequantize(self, node: fx.Node) -> str | None:
        """The value that a quantized linear reads; widened only if something else needs it."""
        value = self._walk.value(node.args[0])
        if not isinstance(value, Octets):
            return self._walk.unread(node.args[0])
        self._walk.values[node] = replace(value, floats=True)
        return None
