"""What a linear does with its finished sums while they are still in registers.

int32 sums -> * scale + bias -> activation -> + residual -> fp32 row and / or uint8 row
fp32 sums           + bias -> ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value
from sparsefx.backends.cpu.vmath import ACTIVATIONS

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
)
"""Step words that every linear shares."""


@dataclass(frozen=True)
class Epilogue:
    """Which of the stages above a linear has.

    Attributes:
        integer: The sums are int32 and are scaled per row.
        activation: A name of `vmath.ACTIVATIONS`, or "".
        residual: Add an fp32 buffer of the same shape.
        floats: Write fp32 rows.
        octets: Write uint8 rows (quantize).
    """

    integer: bool = False
    activation: str = ""
    residual: bool = False
    floats: bool = True
    octets: bool = False

    @property
    def symbol(self) -> str:
        """Part of the kernel's name."""
        parts = (
            "i8" if self.integer else "f32",
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
            quantize_row(self._frame, values, f.offset(self._octets, narrow))


def quantize_row(frame: Frame, values: Sequence[Value], target: Value) -> None:
    """Write `clamp(round(v * inverse_scale) + zero_point, 0, 255)` as one uint8 row."""
    f, panel = frame.f, frame.panel
    inverse = f.splat(frame.number("inverse_scale"), panel.lanes)
    zero = f.splat(f.convert("trunc", frame.word("zero_point"), "i32"), panel.lanes)
    panel.store_bytes(f, target, [panel.round_to_int(f, v * inverse) + zero for v in values])
