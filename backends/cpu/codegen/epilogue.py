"""What a linear does with its finished sums while they are still in registers.

    int32 sums -> * scale + bias -> snap -> activation -> + residual -> fp32 and / or uint8 row
    fp32 sums           + bias -> ...

`snap` rounds to the grid of a quantizer and back (quantize, dequantize). When an activation and a
second quantizer follow, the three together map 256 codes to 256 codes: `table` looks them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.frame import Frame
from sparsefx.backends.cpu.codegen.ir import Value, vector
from sparsefx.backends.cpu.codegen.vmath import ACTIVATIONS, maximum, minimum

__all__ = ["EPILOGUE_FIELDS", "Epilogue", "Sink", "quantize_row"]

EPILOGUE_FIELDS = (
    "rows",
    "scale",
    "bias",
    "residual",
    "output",
    "output_bytes",
    "inverse_scale",
    "zero_point",
    "space",
    "snap",
    "table",
)
"""Step words that every linear shares."""


@dataclass(frozen=True)
class Epilogue:
    """Which of the stages above a linear has.

    Attributes:
        integer: The sums are int32 and are scaled per row.
        snap: Round rows to quantizers: `snap` is fp32 [rows][4], (1 / scale, scale, lowest,
            highest) with the limits counted from the zero point; 0 first leaves a row alone.
        table: Quantize by `inverse_scale` and `zero_point`, then replace every byte by its entry
            in the 256 bytes of `table`; nothing else but `octets` may be set.
        activation: A name of `vmath.ACTIVATIONS`, or "".
        residual: Add an fp32 buffer of the same shape.
        floats: Write fp32 rows.
        octets: Write uint8 rows (quantize).
        codes: Write uint8 rows by the quantizers in `snap`, one for each row; nothing else but
            `octets` may be set.
    """

    integer: bool = False
    activation: str = ""
    residual: bool = False
    floats: bool = True
    octets: bool = False
    snap: bool = False
    table: bool = False
    codes: bool = False

    @property
    def symbol(self) -> str:
        """Part of the kernel's name."""
        parts = (
            "i8" if self.integer else "f32",
            "snap" if self.snap else "",
            "table" if self.table else "",
            "codes" if self.codes else "",
            self.activation,
            "res" if self.residual else "",
            "f" if self.floats else "",
            "q" if self.octets else "",
        )
        return "_".join(part for part in parts if part)


class Sink:
    """The epilogue inside one kernel: pointers are loaded once, rows are finished one by one."""

    def __init__(self, frame: Frame, epilogue: Epilogue) -> None:
        self._frame = frame
        self._epilogue = epilogue
        space = frame.word("space")
        self.rows = frame.word("rows")
        self.integer = epilogue.integer
        self._bias = frame.pointer("bias")
        self._scale = frame.pointer("scale") if epilogue.integer else None
        self._residual = frame.buffer("residual", space) if epilogue.residual else None
        self._floats = frame.buffer("output", space) if epilogue.floats else None
        self._octets = frame.buffer("output_bytes", space) if epilogue.octets else None

    def finish(
        self, sums: Sequence[Value], row: Value, panel_number: Value, first: int = 0
    ) -> None:
        """Finish row `row` (an i64) of one panel, or of its vectors from number `first`."""
        f, panel, epilogue = self._frame.f, self._frame.panel, self._epilogue
        bias = f.splat(f.load("float", f.offset(self._bias, row * 4)), panel.lanes)
        values = list(sums)
        if self._scale is not None:
            scale = f.splat(f.load("float", f.offset(self._scale, row * 4)), panel.lanes)
            values = [f.convert("sitofp", v, panel.floats) for v in values]
            values = [f.fma(v, scale, bias) for v in values]
        else:
            values = [v + bias for v in values]
        if epilogue.snap:
            values = self._snap(values, row)
        if epilogue.activation:
            values = [ACTIVATIONS[epilogue.activation](f, v) for v in values]
        place = panel_number * self.rows + row
        wide = place * panel.row_bytes + first * panel.lanes * 4
        if self._residual is not None:
            rest = panel.load(f, f.offset(self._residual, wide), count=len(values))
            values = [v + r for v, r in zip(values, rest, strict=True)]
        if self._floats is not None:
            panel.store(f, f.offset(self._floats, wide), values)
        if self._octets is not None:
            narrow = place * panel.width + first * panel.lanes
            target = f.offset(self._octets, narrow)
            if epilogue.table:
                self._look_up(values, target)
            elif epilogue.codes:
                self._write_codes(values, row, target)
            else:
                quantize_row(self._frame, values, target)

    def _snap(self, values: list[Value], row: Value) -> list[Value]:
        """Values on the grid of the row's quantizer."""
        f, panel = self._frame.f, self._frame.panel
        place = f.offset(self._frame.pointer("snap"), row * 16)
        inverse, scale, low, high = (f.index("float", place, n) for n in range(4))
        slots = [f.var(value) for value in values]
        with f.when(f.compare(inverse, ">", 0)):
            factor, step, bottom, top = (
                f.splat(v, panel.lanes) for v in (inverse, scale, low, high)
            )
            for slot in slots:
                whole = panel.round_to_int(f, slot.get() * factor)
                steps = f.convert("sitofp", whole, panel.floats)
                slot.set(minimum(f, maximum(f, steps, bottom), top) * step)
        return [slot.get() for slot in slots]

    def _write_codes(self, values: list[Value], row: Value, target: Value) -> None:
        """The codes of the row's quantizer; `lowest` is minus its zero point."""
        f, panel = self._frame.f, self._frame.panel
        place = f.offset(self._frame.pointer("snap"), row * 16)
        inverse = f.splat(f.index("float", place, 0), panel.lanes)
        lowest = f.splat(f.convert("fptosi", f.index("float", place, 2), "i32"), panel.lanes)
        codes = [panel.round_to_int(f, v * inverse) - lowest for v in values]
        panel.store_bytes(f, target, codes)

    def _look_up(self, values: list[Value], target: Value) -> None:
        """Quantize, then replace every byte by its entry in the table (`vpermi2b`)."""
        f, panel = self._frame.f, self._frame.panel
        codes = panel.wide_bytes(f, quantized(self._frame, values))
        line, table = vector(64, "i8"), self._frame.pointer("table")
        parts = [f.load(line, f.offset(table, 64 * n)) for n in range(4)]
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (f.intrinsic(name, line, parts[n], codes, parts[n + 1]) for n in (0, 2))
        found = f.select(f.compare(codes, "<", 0), high, low)
        f.store(f.shuffle(found, found, range(panel.width)), target, panel.width)


def quantized(frame: Frame, values: Sequence[Value]) -> list[Value]:
    """round(v * inverse_scale) + zero_point as int32, not yet limited."""
    f, panel = frame.f, frame.panel
    inverse = f.splat(frame.number("inverse_scale"), panel.lanes)
    zero = f.splat(f.convert("trunc", frame.word("zero_point"), "i32"), panel.lanes)
    return [panel.round_to_int(f, v * inverse) + zero for v in values]


def quantize_row(frame: Frame, values: Sequence[Value], target: Value) -> None:
    """Write `clamp(round(v * inverse_scale) + zero_point, 0, 255)` as one uint8 row."""
    frame.panel.store_bytes(frame.f, target, quantized(frame, values))
