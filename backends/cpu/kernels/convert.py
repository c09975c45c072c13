"""Between rows of fp32, uint8 and 16-bit floats; elementwise steps that no linear took along."""

from __future__ import annotations

from sparsefx.backends.cpu.codegen.epilogue import quantize_row
from sparsefx.backends.cpu.codegen.frame import open_frame
from sparsefx.backends.cpu.codegen.ir import Function, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.codegen.vmath import ACTIVATIONS
from sparsefx.backends.cpu.kernels.blocks import INTERLEAVE_FIELDS
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = [
    "COPY_FIELDS",
    "ELEMENTWISE_FIELDS",
    "EXPAND_FIELDS",
    "QUANTIZE_FIELDS",
    "SHORTEN_FIELDS",
    "emit_copy",
    "emit_elementwise",
    "emit_expand",
    "emit_pair",
    "emit_quantize",
    "emit_shorten",
]

QUANTIZE_FIELDS = ("rows", "input", "output_bytes", "inverse_scale", "zero_point", "space")
EXPAND_FIELDS = ("rows", "input", "output", "scale", "zero_point", "space")
SHORTEN_FIELDS = ("rows", "input", "output", "space")
COPY_FIELDS = ("rows", "first", "input", "input_rows", "output", "space")
ELEMENTWISE_FIELDS = ("rows", "input", "other", "output", "space")


def emit_quantize(isa: Isa, width: int) -> Function:
    """fp32 rows to uint8 rows."""
    frame = open_frame(f"quantize_{isa.name}_w{width}", Panel(isa, width), QUANTIZE_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    source, target = frame.buffer("input", space), frame.buffer("output_bytes", space)
    rows = frame.word("rows")
    for number, unit in frame.each_unit(rows, space):
        row = number * rows + unit
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        quantize_row(frame, values, f.offset(target, row * panel.width))
    return f


def emit_expand(isa: Isa, width: int) -> Function:
    """uint8 rows to fp32 rows: `(byte - zero_point) * scale`."""
    frame = open_frame(f"expand_{isa.name}_w{width}", Panel(isa, width), EXPAND_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    source, target = frame.buffer("input", space), frame.buffer("output", space)
    scale = f.splat(frame.number("scale"), panel.lanes)
    zero = f.splat(f.convert("trunc", frame.word("zero_point"), "i32"), panel.lanes)
    rows = frame.word("rows")
    for number, unit in frame.each_unit(rows, space):
        row = number * rows + unit
        place = f.offset(source, row * width)
        if isa.has_pack_order:
            blank = f.const(vector(width, "i8"), 0)
            first = f.load(vector(width, "i8"), place, width)
            # Interleaving with three rows of zeros puts each byte alone into its token's lane.
            wide = panel.quads(f, [first, blank, blank, blank])
        else:
            steps = [f.offset(place, n * panel.lanes) for n in range(panel.vectors)]
            small = [panel.load_bytes(f, p, panel.lanes) for p in steps]
            wide = [f.convert("zext", codes, panel.ints) for codes in small]
        values = [f.convert("sitofp", w - zero, panel.floats) * scale for w in wide]
        panel.store(f, f.offset(target, row * panel.row_bytes), values)
    return f


def emit_shorten(isa: Isa, width: int) -> Function:
    """fp32 rows to rows of the instruction set's floats of 16 bits."""
    frame = open_frame(f"shorten_{isa.name}_w{width}", Panel(isa, width), SHORTEN_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    source, target = frame.buffer("input", space), frame.buffer("output", space)
    store = panel.store_bf16 if isa.short == "bf16" else panel.store_fp16
    rows = frame.word("rows")
    for number, unit in frame.each_unit(rows, space):
        row = number * rows + unit
        values = panel.load(f, f.offset(source, row * panel.row_bytes))
        store(f, f.offset(target, row * (2 * width)), values)
    return f


def emit_copy(isa: Isa, width: int) -> Function:
    """Some rows of a buffer, from row `first` on, as a buffer of their own."""
    frame = open_frame(f"copy_{isa.name}_w{width}", Panel(isa, width), COPY_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    source, target = frame.buffer("input", space), frame.buffer("output", space)
    rows = frame.word("rows")
    for number, row in frame.each_unit(rows, space):
        place = number * frame.word("input_rows") + frame.word("first") + row
        values = panel.load(f, f.offset(source, place * panel.row_bytes))
        panel.store(f, f.offset(target, (number * rows + row) * panel.row_bytes), values)
    return f


def emit_pair(isa: Isa, width: int) -> Function:
    """fp32 rows to pairs of interleaved rows of bf16, for tiles; `rows` counts the result's."""
    frame = open_frame(f"pair_{isa.name}_w{width}", Panel(isa, width), INTERLEAVE_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    columns, groups = frame.word("columns"), frame.word("rows") // 2
    source, target = frame.buffer("input", space), frame.buffer("output_bytes", space)
    short, words = vector(panel.lanes, "bfloat"), vector(panel.lanes, "i16")
    for number, group in frame.each_unit(groups, space):
        two = []
        for n in range(2):
            # The last channel stands in for those that do not exist: their weights are zero.
            channel = group * 2 + n
            channel = f.select(f.compare(channel, "<", columns), channel, columns - 1)
            row = panel.load(f, f.offset(source, (number * columns + channel) * panel.row_bytes))
            small = [f.convert("bitcast", f.convert("fptrunc", v, short), words) for v in row]
            two.append([f.convert("zext", v, panel.ints) for v in small])
        mixed = [a | (b << 16) for a, b in zip(*two, strict=True)]
        panel.store(f, f.offset(target, (number * groups + group) * panel.row_bytes), mixed)
    return f


def emit_elementwise(isa: Isa, width: int, operation: str) -> Function:
    """`add`, `mul` of two buffers, or an activation of one."""
    name = f"elementwise_{isa.name}_w{width}_{operation}"
    frame = open_frame(name, Panel(isa, width), ELEMENTWISE_FIELDS)
    f, panel, space = frame.f, frame.panel, frame.word("space")
    source, target = frame.buffer("input", space), frame.buffer("output", space)
    other = frame.buffer("other", space)
    rows = frame.word("rows")
    for number, unit in frame.each_unit(rows, space):
        row = number * rows + unit
        place = row * panel.row_bytes
        values = panel.load(f, f.offset(source, place))
        if operation in ("add", "mul"):
            second = panel.load(f, f.offset(other, place))
            pairs = zip(values, second, strict=True)
            values = [a + b if operation == "add" else a * b for a, b in pairs]
        else:
            values = [ACTIVATIONS[operation](f, v) for v in values]
        panel.store(f, f.offset(target, place), values)
    return f
