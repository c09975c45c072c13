"""The state of one walk over a graph: values, steps, and the conversions between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import fx

from sparsefx.backends.cpu.analyses.axes import Layout
from sparsefx.backends.cpu.analyses.graphs import activation, identity_source
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.layouts import Layouts, find_layouts
from sparsefx.backends.cpu.analyses.masks import MaskReader, Meaning
from sparsefx.backends.cpu.analyses.relative import RelativeReader
from sparsefx.backends.cpu.analyses.spelled import Spelled
from sparsefx.backends.cpu.analyses.tried import Tried, find_tried
from sparsefx.backends.cpu.analyses.uses import Uses
from sparsefx.backends.cpu.analyses.values import (
    Embedded,
    Heads,
    Kept,
    Live,
    Mask,
    Octets,
    Rows,
    Scaled,
    Value,
)
from sparsefx.backends.cpu.lowering.forms import Forms
from sparsefx.backends.cpu.lowering.layer import Layer
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.measure.rates import BUILT_IN, Rates, measured_rates
from sparsefx.backends.cpu.plan.plan import Buffer, Step
from sparsefx.program import Program

__all__ = ["LoweringOptions", "Walk"]


@dataclass(frozen=True)
class LoweringOptions:
    """What the target asks for.

    Attributes:
        isa: Instruction set.
        format: One format for every linear that can have it, "" for the cheapest.
        attention: "auto" takes int8 products where q and k come from int8 linears; or "fp32".
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
    blank: set[fx.Node] = field(default_factory=set)
    """Products with a mask, which are 0 at padding in the model too."""
    dropped: dict[str, int] = field(default_factory=dict)
    live: Live = field(default_factory=Live)
    tried: dict[fx.Node, Tried] = field(init=False)
    layouts: Layouts = field(init=False)
    masks: MaskReader = field(init=False)
    relative: RelativeReader = field(init=False)
    uses: Uses = field(init=False)
    forms: Forms = field(init=False)

    def __post_init__(self) -> None:
        self.masks = MaskReader(self.host)
        self.relative = RelativeReader(self.host)
        self.tried = find_tried(self.program, self.host)
        self.layouts = find_layouts(self.program, self.host, self.tried)
        self.uses = Uses(self.layouts, self.tried, self.host)
        self.forms = Forms(self.isa, self.steps, self.indices)

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
        return set(self.program.outputs().values())

    def value(self, node: object) -> Value | None:
        """What an argument has become, if it has."""
        return self.values.get(node) if isinstance(node, fx.Node) else None

    def unread(self, node: object) -> str:
        """Why a node is not there as rows for the kernel that reads it."""
        name = f"its input %{node.name}" if isinstance(node, fx.Node) else "its input"
        value = self.value(node)
        if isinstance(value, Scaled):
            return f"{name} is a product with a number, which attention alone takes"
        if value is not None:
            return f"{name} is not whole rows of channels"
        if node in self.host.nodes:
            return f"{name} does not depend on an embedding of tokens"
        return f"{name} is computed outside the plan"

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
        found = self.tried.get(node)
        return found.name if isinstance(found, Spelled) else activation(node)

    def zero_at_padding(self, node: fx.Node | None) -> bool:
        """Whether a node is 0 at padding in the model too."""
        while node is not None and node not in self.blank:
            node = identity_source(node)
        return node is not None

    def own(self, node: fx.Node, buffer: Buffer, kept: Kept | None = None) -> None:
        """Note that channel 0 of `node` lies in row 0 of a buffer."""
        layout = self.layout(node)
        self.values[node] = Rows(buffer, -layout.first if layout else 0, kept=kept)

    def written(self, node: object) -> Rows | None:
        """The fp32 rows behind a node, all of its buffer; written now if they were not."""
        value = self.value(node)
        if isinstance(value, Embedded):
            return self.forms.embedding(value)
        if isinstance(value, Octets) and value.floats and value.kept is None:
            return Rows(self.forms.floats(value))
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
        return Rows(self.forms.part(found.buffer, first, count))

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

    def quantization(self, node: fx.Node) -> tuple[float, int] | None:
        """(scale, zero point) of a per-tensor uint8 quantize node, else None."""
        arguments = list(node.args) + [None] * 6
        if tuple(arguments[3:5]) != (0, 255) or arguments[5] is not None:
            return None
        scale, zero = (self.host.constant(n) for n in arguments[1:3])  # type: ignore[arg-type]
        if scale is None or zero is None or scale.numel() != 1:
            return None
        return float(scale), int(zero)

    def meaning(self, masks: tuple[Mask, ...]) -> Meaning | str:
        """What the masks of an attention do, or why they cannot be taken; notes their input."""
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
