"""Lowering of linears: weights, format, and everything after the sum that they take along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

import sparsefx.ops  # noqa: F401  # registers the operators named below
from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.costs import Choice, choose_format, tuned
from sparsefx.backends.cpu.epilogue import Epilogue
from sparsefx.backends.cpu.graphs import (
    REFERENCE,
    activation,
    comes_from,
    only_heads,
    rank,
    real_users,
)
from sparsefx.backends.cpu.linear_weights import Weights, read_weights
from sparsefx.backends.cpu.plan import Buffer, Step
from sparsefx.backends.cpu.rates import faster
from sparsefx.backends.cpu.values import Octets, Rows
from sparsefx.backends.cpu.weights import FORMATS, Format, Packed, pack

if TYPE_CHECKING:
    from sparsefx.backends.cpu.walk import Walk

__all__ = ["Layer", "LinearLowering"]

aten = torch.ops.aten
_QUANTIZE = torch.ops.sparsefx.quantize.default
_DEQUANTIZE = torch.ops.sparsefx.dequantize.default


@dataclass(frozen=True)
class Layer:
    """What was decided for one linear kernel.

    Attributes:
        nodes: The graph's linears that it computes.
        rows, columns: Shape of the weight.
        nonzeros: Weights that are not zero.
        integer: int8 arithmetic.
        space: TOKENS, or SEQUENCES where it computes one row for each sequence (a pooler).
        format: The format it got, the cheapest unless one was asked for.
        choice: Candidates and costs.
        packed_bytes: Bytes of the packed weights.
    """

    nodes: tuple[str, ...]
    rows: int
    columns: int
    nonzeros: int
    integer: bool
    space: int
    format: Format
    choice: Choice
    packed_bytes: int


@dataclass(frozen=True)
class _Tail:
    """Nodes after a linear that its kernel computes as well."""

    last: fx.Node
    activation: str = ""
    residual: Buffer | None = None
    snap: tuple[float, int] | None = None


class LinearLowering:
    """Lowers linears of one walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._packed: dict[tuple[Any, ...], Packed] = {}

    def lower(self, node: fx.Node) -> str | None:
        """Lower `node` and its siblings; says why if it cannot."""
        walk = self._walk
        source = walk.value(node.args[0])
        if source is None:
            return "its input is computed outside the plan"
        group = self._siblings(node)
        weights = [read_weights(walk, n, source) for n in group]
        known = [w for w in weights if w is not None]
        if len(known) < len(group):
            return "its weight depends on an input"
        if len({w.matrix.dtype for w in known}) > 1:
            group, known = [node], known[:1]
        joined = Weights(
            np.concatenate([w.matrix for w in known]),
            np.concatenate([w.scale for w in known]),
            np.concatenate([w.bias for w in known]),
        )
        if not isinstance(source, Octets) or joined.matrix.dtype != np.int8:
            written = walk.rows(source)
            if written is None:
                return "its input is not whole rows"
            source = written
        if len(group) == 1:
            self._step(group, source, joined, self._tail(node, len(joined.bias)))
            return None
        codes = self._codes(group) if joined.matrix.dtype == np.int8 else ()
        target = self._step(group, source, joined, _Tail(node), as_codes=bool(codes))
        self._share(group, known, target, codes)
        return None

    def _codes(self, group: list[fx.Node]) -> tuple[tuple[float, int], ...]:
        """The quantizers of query and key, if attention can work on their codes."""
        walk = self._walk
        ends = [self._snapped(n) for n in group]
        found = tuple(snap for _, snap in ends if snap is not None)
        sizes = {int(user.meta["val"].shape[-1]) for end, _ in ends for user in real_users(end)}
        usable = walk.isa.has_pack_order and walk.options.attention == "auto"
        if not usable or len(found) < len(group) or len(group) != 2:
            return ()
        return found if all(size % 4 == 0 for size in sizes) else ()

    def _siblings(self, node: fx.Node) -> list[fx.Node]:
        """Linears on the same input that only feed attention heads: computed as one."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        group = [
            n
            for n in source.users
            if n.target is aten.linear.default
            and n.args[0] is source
            and only_heads(self._snapped(n)[0])
        ]
        # Query and key may become codes, which a value without a quantizer does not.
        snapped = self._snapped(node)[1] is not None
        group = [n for n in group if (self._snapped(n)[1] is not None) == snapped]
        fresh = [n for n in group if n not in self._walk.values]
        return fresh if node in fresh else [node]

    def _snapped(self, node: fx.Node) -> tuple[fx.Node, tuple[float, int] | None]:
        """The dequantize that follows a node, with its quantizer; the node itself if none does.

        A quantizer whose values another linear reads is no snap: it is kept as bytes.
        """
        users = real_users(node)
        if node in self._walk.outputs or len(users) != 1 or users[0].target is not _QUANTIZE:
            return node, None
        parameters = self._walk.quantization(users[0])
        after = list(users[0].users)
        if parameters is None or len(after) != 1 or after[0].target is not _DEQUANTIZE:
            return node, None
        if any(u.target is aten.linear.default for u in real_users(after[0])):
            return node, None
        return after[0], parameters

    def _tail(self, node: fx.Node, rows: int) -> _Tail:
        """Follow the only user: a snap, one activation, one addition of rows already computed."""
        last, snap = self._snapped(node)
        tail = _Tail(last, snap=snap)
        while tail.last not in self._walk.outputs:
            users = real_users(tail.last)
            if len(users) != 1:
                break
            user = users[0]
            name = activation(user)
            if name and not tail.activation and tail.residual is None:
                tail = replace(tail, last=user, activation=name)
                continue
            residual = self._residual(user, tail.last, rows) if tail.residual is None else None
            if residual is None:
                break
            tail = replace(tail, last=user, residual=residual)
        return tail

    def _residual(self, user: fx.Node, behind: fx.Node, rows: int) -> Buffer | None:
        """The buffer that `user` adds to `behind`, if it is an addition of written rows."""
        if user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
            return None
        sides = [n for n in user.args[:2] if isinstance(n, fx.Node)]
        others = [n for n in sides if not comes_from(n, behind)]
        if len(sides) != 2 or len(others) != 1 or rank(others[0]) != rank(behind):
            return None
        value = self._walk.value(others[0])
        if not isinstance(value, Rows) or not value.whole or value.buffer.rows != rows:
            return None
        return value.buffer

    def _step(
        self,
        group: list[fx.Node],
        source: Rows | Octets,
        weights: Weights,
        tail: _Tail,
        *,
        as_codes: bool = False,
    ) -> Buffer:
        """Add the step; gives the buffer of fp32 (whether or not it is written), or of codes."""
        walk, last = self._walk, tail.last
        rows = len(weights.matrix)
        space = source.buffer.space
        floats, quantizes, octets = self.sinks(last, rows, space)
        if len(group) > 1:
            floats, quantizes, octets = True, [], None
        integer = weights.matrix.dtype == np.int8
        zero_point = source.zero_point if isinstance(source, Octets) else 0
        packed, choice = self._pack(group, weights.matrix, zero_point if integer else 0)
        epilogue = Epilogue(
            integer, tail.activation, tail.residual is not None, floats, octets is not None
        )
        snaps = self._snaps(group, weights, tail)
        table = self._table(tail, octets) if not floats and tail.residual is None else None
        target = Buffer(last.name, rows, 4, space)
        words: dict[str, Any] = {
            **packed.words,
            "rows": rows,
            "scale": weights.scale,
            "bias": weights.bias,
            "space": space,
            "input": walk.read_as(source, packed.format, integer=integer),
        }
        if tail.residual is not None:
            words["residual"] = tail.residual
        if floats:
            words["output"] = target
            if len(group) == 1:
                walk.values[last] = Rows(target)
        if octets is not None:
            words["output_bytes"] = octets.buffer
            words["inverse_scale"] = 1.0 / octets.scale
            words["zero_point"] = octets.zero_point
        if table is not None and tail.snap is not None:
            epilogue = replace(epilogue, activation="", table=True)
            words |= {"table": table, "inverse_scale": 1.0 / tail.snap[0]}
            words["zero_point"] = tail.snap[1]
        elif snaps is not None:
            epilogue = replace(epilogue, snap=True)
            words["snap"] = snaps
        walk.values |= dict.fromkeys(quantizes, octets)  # type: ignore[arg-type]  # set if any
        if as_codes:
            target = words["output_bytes"] = Buffer(last.name, rows, 1, space)
            del words["output"]
            epilogue = replace(epilogue, snap=False, floats=False, octets=True, codes=True)
        operation = catalog.linear(packed.format, epilogue)
        self._record(group, last, Step(operation, words, _joined(group)), weights, packed, choice)
        return target

    def _record(
        self,
        group: list[fx.Node],
        last: fx.Node,
        step: Step,
        weights: Weights,
        packed: Packed,
        choice: Choice,
    ) -> None:
        """Add a step with what is told of it, and take the nodes that it computes."""
        walk, names = self._walk, tuple(n.name for n in group)
        layer = _layer(names, weights.matrix, step, packed, choice)
        facts = {"macs": float(layer.nonzeros), "dense_macs": float(weights.matrix.size)}
        walk.steps.append(replace(step, facts=facts))
        walk.layers.append(layer)
        walk.taken |= {*group, last, *self._between(group[0], last)}
        for node in group:
            walk.taken |= set(self._between(node, self._snapped(node)[0]))

    def _between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Nodes from a linear to the end of its tail, whose values are never written."""
        found, node = [], first
        while node is not last:
            node = real_users(node)[0]
            found.append(node)
        return found

    def _snaps(
        self, group: list[fx.Node], weights: Weights, tail: _Tail
    ) -> NDArray[np.float32] | None:
        """The quantizer of every row, fp32 [rows, 4] (see `Epilogue.snap`); None without any."""
        found = [(tail.snap, len(weights.bias))]
        if len(group) > 1:
            sizes = [int(n.meta["val"].shape[-1]) for n in group]
            found = [(self._snapped(n)[1], s) for n, s in zip(group, sizes, strict=True)]
        if all(snap is None for snap, _ in found):
            return None
        parts = []
        for snap, size in found:
            scale, zero = snap or (0.0, 0)
            row = (1 / scale if scale else 0.0, scale, -zero, 255 - zero)
            parts.append(np.tile(np.array(row, np.float32), (size, 1)))
        return np.concatenate(parts)

    def _table(self, tail: _Tail, octets: Octets | None) -> NDArray[np.uint8] | None:
        """What snap, activation and quantize make of each of the 256 codes, as PyTorch does it."""
        if tail.snap is None or octets is None or not self._walk.isa.has_byte_table:
            return None
        scale, zero = tail.snap
        values = (torch.arange(256) - zero).float() * scale
        if tail.activation:
            values = REFERENCE[tail.activation](values)
        codes = torch.round(values / octets.scale) + octets.zero_point
        return codes.clamp(0, 255).to(torch.uint8).numpy()

    def _share(
        self,
        group: list[fx.Node],
        weights: list[Weights],
        target: Buffer,
        codes: tuple[tuple[float, int], ...],
    ) -> None:
        """Each sibling is a part of the joined rows."""
        first = 0
        for number, (node, own) in enumerate(zip(group, weights, strict=True)):
            end = self._snapped(node)[0]
            code = codes[number] if codes else None
            self._walk.values[end] = Rows(target, first, len(own.bias), code)
            first += len(own.bias)

    def sinks(
        self, node: fx.Node, rows: int, space: int
    ) -> tuple[bool, list[fx.Node], Octets | None]:
        """How a node's value is used: as fp32, and by which quantize nodes alike."""
        users = real_users(node)
        found: Octets | None = None
        quantizes: list[fx.Node] = []
        for user in users:
            parameters = self._walk.quantization(user) if user.target is _QUANTIZE else None
            if parameters is None:
                continue
            if found is None:
                found = Octets(Buffer(f"{node.name}.octets", rows, 1, space), *parameters)
            if (found.scale, found.zero_point) == parameters:
                quantizes.append(user)
        floats = node in self._walk.outputs or len(quantizes) < len(users)
        floats = floats or self._returned_through_identity(node)
        return floats, quantizes, found

    def _returned_through_identity(self, node: fx.Node) -> bool:
        return any(user.op == "output" for user in real_users(node))

    def _pack(
        self, group: list[fx.Node], matrix: NDArray[Any], zero_point: int
    ) -> tuple[Packed, Choice]:
        walk = self._walk
        measured = walk.options.measured and walk.options.pack
        choice = choose_format(matrix, walk.isa, walk.rates)
        if measured:
            choice = tuned(choice, matrix, walk.isa, faster)
        chosen = choice.format
        if walk.options.format in FORMATS and walk.options.format in choice.costs:
            chosen = next(f for f in FORMATS if f == walk.options.format)
        if not walk.options.pack:
            return Packed(chosen, {}), choice
        key = (*(n.args[1] for n in group), zero_point, chosen)
        if key not in self._packed:
            signed = walk.isa.signed_codes
            self._packed[key] = pack(matrix, chosen, zero_point, signed_codes=signed)
        return self._packed[key], choice


def _joined(group: list[fx.Node]) -> str:
    return "+".join(node.name for node in group)


def _layer(
    nodes: tuple[str, ...], matrix: NDArray[Any], step: Step, packed: Packed, choice: Choice
) -> Layer:
    integer, nonzeros = matrix.dtype == np.int8, int(np.count_nonzero(matrix))
    (rows, columns), space = matrix.shape, int(step.words["space"])  # type: ignore[arg-type]
    stored = packed.stored_bytes
    return Layer(nodes, rows, columns, nonzeros, integer, space, packed.format, choice, stored)
