"""The state of one walk over a graph: values, steps, and the conversions between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from sparsefx.backends.cpu import catalog
from sparsefx.backends.cpu.axes import Channels, Layout
from sparsefx.backends.cpu.graphs import activation, identity_source
from sparsefx.backends.cpu.host import Host
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.embed import FIRST_INDEX_TABLE
from sparsefx.backends.cpu.layers import Layer
from sparsefx.backends.cpu.layouts import MOVES, Layouts, find_layouts
from sparsefx.backends.cpu.live import Live, find_live
from sparsefx.backends.cpu.masks import MaskReader, Meaning
from sparsefx.backends.cpu.panel import interleaved_rows, paired_rows
from sparsefx.backends.cpu.plan import Buffer, Step, Word
from sparsefx.backends.cpu.rates import BUILT_IN, Rates, measured_rates
from sparsefx.backends.cpu.rotary import Rotation, find_rotations
from sparsefx.backends.cpu.spelled import Spelled, find_spelled
from sparsefx.backends.cpu.values import Embedded, Heads, Kept, Mask, Octets, Rows, Scaled, Value
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
    indices: dict[str, fx.Node | None] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    padding: list[str | None] = field(default_factory=list)
    taken: set[fx.Node] = field(default_factory=set)
    rewritten: dict[tuple[Buffer, str], Buffer] = field(default_factory=dict)
    embedded: list[tuple[Embedded, Rows]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    spelled: dict[fx.Node, Spelled] = field(init=False)
    layouts: Layouts = field(init=False)
    live: Live = field(init=False)
    masks: MaskReader = field(init=False)
    rotations: dict[fx.Node, Rotation] = field(init=False)

    def __post_init__(self) -> None:
        self.spelled = find_spelled(self.program.graph)
        self.masks = MaskReader(self.program, self.host)
        self.rotations = find_rotations(self.program, self.host)
        self.layouts = find_layouts(self.program, self.host, self.spelled, self.rotations)
        self._spelled_from = {found.source: last for last, found in self.spelled.items()}
        self.live = find_live(self) if self.options.pack else Live()

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

    def number(self, node: object) -> float | None:
        """A number, or the only element of a constant tensor."""
        if isinstance(node, fx.Node):
            found = self.host.constant(node)
            return float(found) if found is not None and found.numel() == 1 else None
        return float(node) if isinstance(node, (int, float)) else None

    def layout(self, node: object) -> Layout | None:
        """How a node's dimensions lie in its value."""
        found = self.layouts.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Layout) else None

    def activation(self, node: fx.Node) -> str:
        """Name of the activation that a node applies, as one operator or spelled out; or ""."""
        return self.spelled[node].name if node in self.spelled else activation(node)

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Users of a node, looking through what only orders its tokens; spellings are one user."""
        direct = set(node.users)
        last = self._spelled_from.get(node)
        if last is not None and direct <= {*self.spelled[last].inner, last}:
            return [last]
        found: list[fx.Node] = []
        for user in node.users:
            found += self.users(user) if self._passes(user, node) else [user]
        return found

    def comes_from(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether `node` is `source` but for the order of its tokens."""
        while node is not source:
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or not self._passes(node, before):
                return False
            node = before
        return True

    def _passes(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether `user` gives the rows of `node`, with its tokens in this or another order."""
        if identity_source(user) is node:
            return True
        old, new = self.layout(node), self.layout(user)
        if user.target not in MOVES or old is None or new is None or old.plain is None:
            return False
        return (old.plain, old.first, old.tokens) == (new.plain, new.first, new.tokens)

    def heads_only(self, node: fx.Node) -> bool:
        """Whether every user sees the channels as heads."""
        users = self.users(node)
        return bool(users) and all(self._as_heads(user) for user in users)

    def _as_heads(self, user: fx.Node) -> bool:
        layout = self.layouts.get(user)
        if user.target not in MOVES or layout is None:
            return False
        if isinstance(layout, Layout) and layout.plain is None:
            return True
        return self.heads_only(user)

    def head_sizes(self, node: fx.Node) -> set[int]:
        """Channels of a head, by all users that see the channels of `node` as heads; else 0."""
        found = set()
        for user in self.users(node):
            layout = self.layout(user)
            last = layout.dims[-1] if layout is not None else ()
            known = len(last) == 1 and isinstance(last[0], Channels) and last[0].step == 1
            found.add(last[0].size if known and isinstance(last[0], Channels) else 0)
        return found

    def turned(self, node: fx.Node) -> bool:
        """Whether a rotation reads the heads of a node."""
        sources = {found.source for found in self.rotations.values()}
        stack = [node]
        while stack:
            current = stack.pop()
            if current in sources:
                return True
            moves = (u for u in current.users if u.target in MOVES or identity_source(u))
            stack += moves
        return False

    def own(self, node: fx.Node, buffer: Buffer, kept: Kept | None = None) -> None:
        """Note that channel 0 of `node` lies in row 0 of a buffer."""
        layout = self.layout(node)
        self.values[node] = Rows(buffer, -layout.first if layout else 0, kept=kept)

    def written(self, node: object) -> Rows | None:
        """The fp32 rows behind a node, all of its buffer; written now if they were not."""
        value = self.value(node)
        if isinstance(value, Embedded):
            return self.embedding(value)
        if isinstance(value, Octets) and value.floats and value.kept is None:
            return Rows(self.floats(value))
        known = isinstance(value, Rows) and value.code is None and value.kept is None
        return value if known and isinstance(value, Rows) else None

    def kept(self, node: object, kept: Kept) -> Rows | Octets | None:
        """The rows or bytes of a node that holds these channels alone."""
        value, layout = self.value(node), self.layout(node)
        if not isinstance(value, (Rows, Octets)) or value.kept is None or layout is None:
            return None
        if layout.first or layout.plain is None or (isinstance(value, Rows) and value.first):
            return None
        return value if np.array_equal(value.kept.channels, kept.channels) else None

    def rows(self, node: object) -> Rows | None:
        """A node as whole fp32 rows, one for each channel; a part of a buffer is copied."""
        layout, count = self.layout(node), 0
        if layout is not None:
            count = layout.plain or 0
        found = self.written(node) if count else None
        if found is None or layout is None:
            return None
        first = found.first + layout.first
        if first == 0 and count == found.buffer.rows:
            return Rows(found.buffer)
        key = (found.buffer, f"{first}:{first + count}")
        if key not in self.rewritten:
            target = Buffer(f"{found.buffer.name}[{key[1]}]", count, 4, found.buffer.space)
            words: dict[str, Word] = {
                "rows": count,
                "first": first,
                "input": found.buffer,
                "input_rows": found.buffer.rows,
                "output": target,
                "space": target.space,
            }
            self.steps.append(Step(catalog.other("copy"), words, target.name))
            self.rewritten[key] = target
        return Rows(self.rewritten[key])

    def heads(self, node: object) -> Heads | None:
        """A node as the heads of attention, if its dimensions are theirs."""
        known, layout = self.value(node), self.layout(node)
        scaled = known if isinstance(known, Scaled) else None
        value = scaled.rows if scaled else known
        found = layout.heads() if layout is not None else None
        if layout is None or found is None or not isinstance(value, Rows):
            return None
        place = layout.first
        if value.kept is not None:
            place = int(np.searchsorted(value.kept.channels, layout.first))
        rows = Rows(value.buffer, value.first + place, value.code, value.kept)
        return Heads(rows, *found, scaled.factor if scaled else 1.0)

    def whole_octets(self, node: object) -> Octets | None:
        """A node as uint8 rows, one for each channel."""
        value, layout = self.value(node), self.layout(node)
        if not isinstance(value, Octets) or layout is None or layout.first or value.kept:
            return None
        return value if layout.plain == value.buffer.rows else None

    def read_as(self, value: Rows | Octets, format: Format, *, integer: bool) -> Buffer:
        """A value as the kernel of a format reads it."""
        if isinstance(value, Octets) and integer and format in ("rows", "dense_f32"):
            return self.integers(value)
        if isinstance(value, Octets) and (format == "blocks" or format in TILED):
            return self.interleaved(value)
        if format == "dense_amx_bf16":
            return self.paired(value.buffer)
        return self.shortened(value.buffer) if format in SHORT else value.buffer

    def integers(self, value: Octets) -> Buffer:
        """The bytes themselves as fp32, for arithmetic without a dot product; written once."""
        return self._expanded(value, "integers", 1.0, 0)

    def floats(self, value: Octets) -> Buffer:
        """What the bytes mean, as fp32; written once."""
        return self._expanded(value, "floats", value.scale, value.zero_point)

    def _expanded(self, value: Octets, kind: str, scale: float, zero_point: int) -> Buffer:
        key = (value.buffer, kind)
        if key not in self.rewritten:
            name = f"{value.buffer.name}.{kind}"
            target = Buffer(name, value.buffer.rows, 4, value.buffer.space)
            words: dict[str, Word] = {
                "rows": target.rows,
                "input": value.buffer,
                "output": target,
                "scale": scale,
                "zero_point": zero_point,
                "space": target.space,
            }
            self.steps.append(Step(catalog.other("expand"), words, target.name))
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

    def paired(self, source: Buffer) -> Buffer:
        """fp32 rows as bf16 with two channels together, for tiles; written once."""
        key = (source, "paired")
        if key not in self.rewritten:
            rows = paired_rows(source.rows)
            target = Buffer(f"{source.name}.paired", rows, 2, source.space)
            words: dict[str, Word] = {"rows": rows, "columns": source.rows, "input": source}
            words |= {"output_bytes": target, "space": target.space}
            self.steps.append(Step(catalog.other("pair"), words, target.name))
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
        return Octets(target, scale, zero_point, kept=source.kept)

    def quantization(self, node: fx.Node) -> tuple[float, int] | None:
        """(scale, zero point) of a per-tensor uint8 quantize node, else None."""
        arguments = list(node.args) + [None] * 6
        if tuple(arguments[3:5]) != (0, 255) or arguments[5] is not None:
            return None
        scale, zero = (self.host.constant(n) for n in arguments[1:3])  # type: ignore[arg-type]
        if scale is None or zero is None or scale.numel() != 1:
            return None
        return float(scale), int(zero)

    def embedding(self, value: Embedded) -> Rows:
        """The rows of a sum of embeddings; written once."""
        for known, rows in self.embedded:
            if known is value:
                return rows
        channels = value.tables[0].shape[1]
        stride = -(-channels // self.isa.lanes) * self.isa.lanes
        name = "positions" if value.indices == (None,) else "embedding"
        target = Buffer(name, channels, 4)
        words: dict[str, Any] = {"output": target, "rows": channels, "stride": stride}
        for n, (table, index) in enumerate(zip(value.tables, value.indices, strict=True)):
            array = np.ascontiguousarray(table.detach().float().numpy())
            if stride != channels:
                array = np.pad(array, ((0, 0), (0, stride - channels)))
            read = index.name if index is not None else "positions"
            self.indices.setdefault(read, index)
            words[f"table{n}"] = array
            words[f"indices{n}"] = FIRST_INDEX_TABLE + list(self.indices).index(read)
        self.steps.append(Step(catalog.embedding(len(value.tables)), words, target.name))
        self.embedded.append((value, Rows(target)))
        return Rows(target)

    def meaning(self, masks: tuple[Mask, ...]) -> Meaning | str:
        """What the masks of an attention do, or why they cannot be taken; notes their input."""
        nodes = [mask.node for mask in masks]
        if any(not isinstance(n, fx.Node) or n not in self.host.nodes for n in nodes):
            return "its mask depends on activations"
        found = self.masks.read(masks) if masks else Meaning(None, None)
        if isinstance(found, str):
            return found
        if self.conflicts(found.padding):
            return "masks of different inputs"
        self.padding.append(found.padding)
        return found

    def conflicts(self, padding: str | None) -> bool:
        """Whether another input than this one, or none, was found to say what is padding."""
        return any(known != padding for known in self.padding)

    @property
    def free(self) -> bool:
        """Whether batch and sequence may have any size."""
        dims = next(s.dims for s in self.program.signature.inputs if len(s.dims) == 2)
        return all(isinstance(d, str) for d in dims)
