"""Lowering of linears: weights, format, and everything after the sum that they take along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from sparsefx.backends.cpu.analyses.graphs import REFERENCE
from sparsefx.backends.cpu.analyses.values import Kept, Octets, Rows
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.lowering.costs import Choice, choose_format, tuned
from sparsefx.backends.cpu.lowering.layer import Layer
from sparsefx.backends.cpu.lowering.linear_weights import Weights, joined_weights, read_weights
from sparsefx.backends.cpu.lowering.neighbours import Neighbours, Tail
from sparsefx.backends.cpu.lowering.walk import Walk
from sparsefx.backends.cpu.measure.rates import faster
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step
from sparsefx.backends.cpu.plan.weights import FORMATS, Packed, pack
from sparsefx.passes.analyses.dataflow import weight_of

__all__ = ["LinearLowering"]


@dataclass(frozen=True)
class _Section:
    """What one kernel computes: linears on the same input, or some rows of one.

    Attributes:
        linears: Their nodes.
        end: The node whose values it computes, before what follows.
        start, stop: The rows, where they are not all.
        sizes: Rows of each of several linears.
        kept: The rows of the only linear that are left, if some are not.
        dropped: Rows and columns that were left out.
    """

    linears: tuple[fx.Node, ...]
    end: fx.Node
    start: int = 0
    stop: int = 0
    sizes: tuple[int, ...] = ()
    kept: Kept | None = None
    dropped: tuple[int, int] = (0, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the linears."""
        part = f"[{self.start}:{self.stop}]" if self.stop else ""
        return tuple(node.name + part for node in self.linears)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells its weight from others."""
        return (*(node.args[1] for node in self.linears), self.start, self.stop)


class LinearLowering:
    """Lowers linears of one walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.around = Neighbours(walk)
        self._packed: dict[tuple[Any, ...], Packed] = {}

    def lower(self, node: fx.Node) -> str | None:
        """Lower `node` and its siblings; says why if it cannot."""
        walk = self._walk
        read = node.args[0]
        source = walk.value(read)
        if source is None:
            return walk.unread(read)
        group = self.around.siblings(node)
        weights = [read_weights(walk, n, source) for n in group]
        known = [w for w in weights if w is not None]
        if len(known) < len(group):
            return "its weight depends on an input"
        if len({w.matrix.dtype for w in known}) > 1:
            group, known = [node], [known[group.index(node)]]
        live = walk.live.columns.get(node)
        written, columns = self._input(read, live, integer=known[0].matrix.dtype == np.int8)
        if written is None:
            return walk.unread(read)
        left = [w.kept(walk.live.rows.get(n), columns) for n, w in zip(group, known, strict=True)]
        joined = joined_weights(left)
        everything = sum(int(n.meta["val"].shape[-1]) for n in group)
        lost = everything - len(joined.bias), _width(group[0]) - joined.matrix.shape[1]
        if len(group) > 1:
            self._lower_together(group, left, written, lost)
        else:
            self._lower_alone(node, joined, written, lost)
        return None

    def _input(
        self, read: object, live: Kept | None, *, integer: bool
    ) -> tuple[Rows | Octets | None, Kept | None]:
        """The rows that a linear reads, and the channels that they are, where not all."""
        walk = self._walk
        partial = walk.kept(read, live) if live is not None else None
        if isinstance(partial, Octets) and not integer:
            partial = Rows(walk.forms.floats(partial))
        if partial is not None:
            return partial, live
        return (walk.whole_octets(read) if integer else None) or walk.rows(read), None

    def _lower_alone(
        self, node: fx.Node, weights: Weights, source: Rows | Octets, dropped: tuple[int, int]
    ) -> None:
        """One kernel, or one for each part of the channels that has users of its own."""
        pieces = self.around.pieces(node)
        end, snap = self.around.snapped(node)
        if not pieces:
            section = _Section((node,), end, kept=self._walk.live.rows.get(node), dropped=dropped)
            self._step(section, source, weights, self.around.tail(end, snap))
        for piece, start, count in pieces:
            section = _Section((node,), piece, start, start + count)
            last, own = (piece, snap) if snap else self.around.snapped(piece)
            rows = weights.rows(start, start + count)
            self._step(section, source, rows, self.around.tail(last, own))

    def _lower_together(
        self,
        group: list[fx.Node],
        weights: list[Weights],
        source: Rows | Octets,
        dropped: tuple[int, int],
    ) -> None:
        joined = joined_weights(weights)
        codes = self._codes(group) if joined.matrix.dtype == np.int8 else ()
        sizes = tuple(len(w.bias) for w in weights)
        section = _Section(tuple(group), group[0], sizes=sizes, dropped=dropped)
        target = self._step(section, source, joined, Tail(group[0]), as_codes=bool(codes))
        self._share(group, weights, target, codes)

    def _codes(self, group: list[fx.Node]) -> tuple[tuple[float, int], ...]:
        """The quantizers of query and key, if attention can work on their codes."""
        walk = self._walk
        ends = [self.around.snapped(n) for n in group]
        found = tuple(snap for _, snap in ends if snap is not None)
        sizes = {size for end, _ in ends for size in walk.uses.head_sizes(end)}
        usable = walk.isa.has_pack_order and walk.options.attention == "auto"
        usable = usable and not any(walk.uses.needs_floats(end) for end, _ in ends)
        if not usable or len(found) < len(group) or len(group) != 2:
            return ()
        return found if all(size and size % 4 == 0 for size in sizes) else ()

    def _step(
        self,
        section: _Section,
        source: Rows | Octets,
        weights: Weights,
        tail: Tail,
        *,
        as_codes: bool = False,
    ) -> Buffer:
        """Add the step; gives the buffer of fp32 (whether or not it is written), or of codes."""
        rows, space = len(weights.matrix), source.buffer.space
        integer = weights.matrix.dtype == np.int8
        zero_point = source.zero_point if integer and isinstance(source, Octets) else 0
        packed, choice = self._pack(section, weights.matrix, zero_point)
        read = self._walk.forms.read_as(source, packed.format, integer=integer)
        target = Buffer(tail.last.name, rows, 1 if as_codes else 4, space)
        if as_codes:
            epilogue, ends = self._codes_out(section, weights, target)
        else:
            epilogue, ends = self._after(section, weights, tail, target)
        words: dict[str, Any] = {
            **packed.words,
            "rows": rows,
            "scale": weights.scale,
            "bias": weights.bias,
            "space": space,
            "input": read,
            **ends,
        }
        step = Step(catalog.linear(packed.format, epilogue), words, "+".join(section.names))
        self._record(section, tail.last, step, weights, packed, choice)
        return target

    def _codes_out(
        self, section: _Section, weights: Weights, target: Buffer
    ) -> tuple[Epilogue, dict[str, Any]]:
        """What follows the sums where each row goes to the codes of its own quantizer."""
        words = {"output_bytes": target, "snap": self._snaps(section, weights, None)}
        integer = weights.matrix.dtype == np.int8
        return Epilogue(integer, floats=False, octets=True, codes=True), words

    def _after(
        self, section: _Section, weights: Weights, tail: Tail, target: Buffer
    ) -> tuple[Epilogue, dict[str, Any]]:
        """What follows the sums, as epilogue and words; notes the values that come of it."""
        walk, alone = self._walk, len(section.linears) == 1
        floats, quantizes, octets = self.around.sinks(tail.last, target.rows, target.space)
        if not alone:
            floats, octets = True, None
        words: dict[str, Any] = {}
        if tail.residual is not None:
            words["residual"] = tail.residual
        if floats:
            words["output"] = target
        if floats and alone:
            walk.own(tail.last, target, section.kept)
        if octets is not None:
            octets = replace(octets, kept=section.kept)
            words |= {"output_bytes": octets.buffer, "inverse_scale": 1.0 / octets.scale}
            words["zero_point"] = octets.zero_point
            walk.values |= dict.fromkeys(quantizes, octets)
        integer, adds = weights.matrix.dtype == np.int8, tail.residual is not None
        epilogue = Epilogue(integer, tail.activation, adds, floats, octets is not None)
        table = self._table(tail, octets) if not floats and not adds else None
        if table is not None and tail.snap is not None:
            words |= {"table": table, "inverse_scale": 1.0 / tail.snap[0]}
            words["zero_point"] = tail.snap[1]
            return replace(epilogue, activation="", table=True), words
        snaps = self._snaps(section, weights, tail.snap)
        if snaps is None:
            return epilogue, words
        return replace(epilogue, snap=True), words | {"snap": snaps}

    def _record(
        self,
        section: _Section,
        last: fx.Node,
        step: Step,
        weights: Weights,
        packed: Packed,
        choice: Choice,
    ) -> None:
        """Add a step with what is told of it, and take the nodes that it computes."""
        walk = self._walk
        layer = _layer(section, weights.matrix, step, packed, choice)
        facts = {"macs": float(layer.nonzeros), "dense_macs": float(weights.matrix.size)}
        walk.steps.append(replace(step, facts=facts))
        walk.layers.append(layer)
        walk.taken |= {*section.linears, section.end, *self.around.between(section.end, last)}
        for node in section.linears:
            walk.taken |= set(self.around.between(node, self.around.snapped(node)[0]))

    def _snaps(
        self, section: _Section, weights: Weights, own: tuple[float, int] | None
    ) -> NDArray[np.float32] | None:
        """The quantizer of every row, fp32 [rows, 4] (see `Epilogue.snap`); None without any."""
        found = [(own, len(weights.bias))]
        if section.sizes:
            several = zip(section.linears, section.sizes, strict=True)
            found = [(self.around.snapped(n)[1], size) for n, size in several]
        if all(snap is None for snap, _ in found):
            return None
        parts = []
        for snap, size in found:
            scale, zero = snap or (0.0, 0)
            row = (1 / scale if scale else 0.0, scale, -zero, 255 - zero)
            parts.append(np.tile(np.array(row, np.float32), (size, 1)))
        return np.concatenate(parts)

    def _table(self, tail: Tail, octets: Octets | None) -> NDArray[np.uint8] | None:
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
            end = self.around.snapped(node)[0]
            code = codes[number] if codes else None
            self._walk.values[end] = Rows(target, first, code, self._walk.live.rows.get(node))
            first += len(own.bias)

    def _pack(
        self, section: _Section, matrix: NDArray[Any], zero_point: int
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
        live = [
            part.get(n) for n in section.linears for part in (walk.live.rows, walk.live.columns)
        ]
        key = (*section.key, *live, zero_point, chosen)
        if key not in self._packed:
            signed = walk.isa.signed_codes
            self._packed[key] = pack(matrix, chosen, zero_point, signed_codes=signed)
        return self._packed[key], choice


def _layer(
    section: _Section, matrix: NDArray[Any], step: Step, packed: Packed, choice: Choice
) -> Layer:
    integer, nonzeros = matrix.dtype == np.int8, int(np.count_nonzero(matrix))
    (rows, columns), space = matrix.shape, int(step.words["space"])  # type: ignore[arg-type]
    names = tuple(weight_of(node) or node.name for node in section.linears)
    return Layer(
        nodes=section.names,
        weights=names,
        rows=rows,
        columns=columns,
        nonzeros=nonzeros,
        integer=integer,
        space=space,
        format=packed.format,
        choice=choice,
        packed_bytes=packed.stored_bytes,
        dropped=section.dropped,
    )


def _width(node: fx.Node) -> int:
    """Columns of a linear's weight."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return int(weight.meta["val"].shape[1])
