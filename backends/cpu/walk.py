"""The state of one walk over a graph: values, steps, and the conversions between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.host import Host
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.embed import FIRST_INDEX_TABLE
from sparsefx.backends.cpu.layers import Layer
from sparsefx.backends.cpu.panel import interleaved_rows
from sparsefx.backends.cpu.plan import Buffer, Step, Word
from sparsefx.backends.cpu.rates import BUILT_IN, Rates, measured_rates
from sparsefx.backends.cpu.values import Embedded, Octets, Rows, Value
from sparsefx.backends.cpu.weights import SHORT, TILED, Format
from sparsefx.program import Program

__all__ = ["LoweringOptions", "Walk"]


@dataclass(frozen=True)
class LoweringOptions:
    """What the target asks for.

    Attributes:
        isa: Instruction set.
        format: One format for every linear that can have it, "" for the cheapest.
        attention: "auto" takes int8 products where q, k, v come from int8 linears; or "fp32".
        measured: Whether formats are chosen by what this machine was measured to take.
        pack: Whether weights are packed; the walk's decisions need none.
    """

    isa: Isa
    format: str = ""
    attention: str = "auto"
    measured: bool = True
    pack: bool = True


@dataclass
class Walk:
    """The state of the walk over one Program."""

    program: Program
    host: Host
    options: LoweringOptions
    values: dict[fx.Node, Value] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    indices: dict[str, fx.Node] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    padding: list[str | None] = field(default_factory=list)
    taken: set[fx.Node] = field(default_factory=set)
    rewritten: dict[tuple[Buffer, str], Buffer] = field(default_factory=dict)
    embedded: list[tuple[Embedded, Rows]] = field(default_factory=list)

    @property
    def isa(self) -> Isa:
        """The instruction set."""
        return self.options.isa

    @property
    def rates(self) -> Rates:
        """What formats and kernels are chosen by."""
        measured = self.options.measured and self.options.pack
        return measured_rates(self.isa) if measured else BUILT_IN

    @property
    def outputs(self) -> set[fx.Node]:
        """Nodes that the graph returns."""
        found: dict[str, fx.Node] = self.program.graph.output_node().args[0]  # type: ignore[assignment]
        return set(found.values())

    def value(self, node: object) -> Value | None:
        """What an argument has become, if it has."""
        return self.values.get(node) if isinstance(node, fx.Node) else None

    def rows(self, value: Value | None) -> Rows | None:
        """A value as whole fp32 rows, written now if it was not."""
        if isinstance(value, Embedded):
            return self._write_embedding(value)
        if isinstance(value, Octets) and value.floats:
            target = Buffer(f"{value.buffer.name}.floats", value.buffer.rows, 4, value.buffer.space)
            self.expand(value, target, value.scale, value.zero_point)
            return Rows(target)
        if isinstance(value, Rows) and value.whole:
            return value
        return None

    def read_as(self, value: Rows | Octets, format: Format, *, integer: bool) -> Buffer:
        """A value as the kernel of a format reads it."""
        if isinstance(value, Octets) and integer and format in ("rows", "dense_f32"):
            return self.integers(value)
        if isinstance(value, Octets) and (format == "blocks" or format in TILED):
            return self.interleaved(value)
        return self.shortened(value.buffer) if format in SHORT else value.buffer

    def integers(self, value: Octets) -> Buffer:
        """The bytes themselves as fp32, for arithmetic without a dot product; written once."""
        key = (value.buffer, "integers")
        if key not in self.rewritten:
            name = f"{value.buffer.name}.integers"
            target = Buffer(name, value.buffer.rows, 4, value.buffer.space)
            self.expand(value, target, 1.0, 0)
            self.rewritten[key] = target
        return self.rewritten[key]

    def shortened(self, source: Buffer) -> Buffer:
        """fp32 rows as floats of 16 bits; written once."""
        key = (source, "short")
        if key not in self.rewritten:
            target = Buffer(f"{source.name}.short", source.rows, 2, source.space)
            words: dict[str, Word] = {"rows": target.rows, "input": source, "output": target}
            step = Step(catalog.other("shorten"), words | {"space": target.space}, target.name)
            self.steps.append(step)
            self.rewritten[key] = target
        return self.rewritten[key]

    def interleaved(self, value: Octets) -> Buffer:
        """The bytes with four channels together, for blocks and tiles; written once."""
        key = (value.buffer, "interleaved")
        if key not in self.rewritten:
            columns, space = value.buffer.rows, value.buffer.space
            rows = interleaved_rows(columns, self.isa)
            target = Buffer(f"{value.buffer.name}.interleaved", rows, 1, space)
            words: dict[str, Word] = {
                "rows": target.rows,
                "columns": columns,
                "input": value.buffer,
                "output_bytes": target,
                "space": space,
            }
            self.steps.append(Step(catalog.other("interleave"), words, target.name))
            self.rewritten[key] = target
        return self.rewritten[key]

    def expand(self, value: Octets, target: Buffer, scale: float, zero_point: int) -> None:
        """Add a step that widens uint8 rows to fp32."""
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": value.buffer,
            "output": target,
            "scale": scale,
            "zero_point": zero_point,
            "space": target.space,
        }
        self.steps.append(Step(catalog.other("expand"), words, target.name))

    def quantize(self, source: Rows, name: str, scale: float, zero_point: int) -> Octets:
        """Add a step that writes uint8 rows."""
        target = Buffer(name, source.buffer.rows, 1, source.buffer.space)
        words: dict[str, Word] = {
            "rows": target.rows,
            "input": source.buffer,
            "output_bytes": target,
            "inverse_scale": 1.0 / scale,
            "zero_point": zero_point,
            "space": target.space,
        }
        self.steps.append(Step(catalog.other("quantize"), words, name))
        return Octets(target, scale, zero_point)

    def quantization(self, node: fx.Node) -> tuple[float, int] | None:
        """(scale, zero point) of a per-tensor uint8 quantize node, else None."""
        arguments = list(node.args) + [None] * 6
        if tuple(arguments[3:5]) != (0, 255) or arguments[5] is not None:
            return None
        scale, zero = (self.host.constant(n) for n in arguments[1:3])  # type: ignore[arg-type]
        if scale is None or zero is None or scale.numel() != 1:
            return None
        return float(scale), int(zero)

    def _write_embedding(self, value: Embedded) -> Rows:
        for known, rows in self.embedded:
            if known is value:
                return rows
        channels = value.tables[0].shape[1]
        stride = -(-channels // self.isa.lanes) * self.isa.lanes
        target = Buffer("embedding", channels, 4)
        words: dict[str, Any] = {"output": target, "rows": channels, "stride": stride}
        for n, (table, index) in enumerate(zip(value.tables, value.indices, strict=True)):
            array = np.ascontiguousarray(table.detach().float().numpy())
            if stride != channels:
                array = np.pad(array, ((0, 0), (0, stride - channels)))
            self.indices.setdefault(index.name, index)
            words[f"table{n}"] = array
            words[f"indices{n}"] = FIRST_INDEX_TABLE + list(self.indices).index(index.name)
        self.steps.append(Step(catalog.embedding(len(value.tables)), words, "embedding"))
        self.embedded.append((value, Rows(target)))
        return Rows(target)

    def mask(self, node: object) -> str | None:
        """Why a mask cannot be taken, or None; notes which input it stands for."""
        if node is None:
            self.padding.append(None)
            return None
        if not isinstance(node, fx.Node) or node not in self.host.nodes:
            return "its mask depends on activations"
        found = self.host.padding(node)
        if found is None:
            return "its mask hides more than padding"
        self.padding.append(found.source)
        known = {source for source in self.padding if source is not None}
        return None if len(known) <= 1 else "masks of different inputs"
