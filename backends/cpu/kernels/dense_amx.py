"""Linear on AMX tiles that reads every weight, int8 or bf16 (`dense_amx_bf16`: fp32 sums).

Weights: int8 [rows of tiles][tiles of a row][16][64] (see `formats/amx_tiles`); `initial`
int32[rows] starts the sums. The activations are interleaved by four channels, as many as the tiles
have columns; bf16 by two. While a strip is multiplied, the next one is fetched into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import amx_strips
from sparsefx.backends.cpu.kernels.amx_strips import SUMS_BYTES, Place, each_strip, strip_depth
from sparsefx.backends.cpu.kernels.amx_tiles import TILE_BYTES
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]

FIELDS = (*EPILOGUE_FIELDS, *amx_strips.FIELDS, "weights")

_LINE = 64
_LINES_OF_TWO_TILES = 2 * TILE_BYTES // _LINE


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"dense_amx_{isa.name}_w{width}_{epilogue.symbol}"


def scratch_bytes(words: Mapping[str, Any]) -> int:
    """Scratch memory of a part."""
    return SUMS_BYTES


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set with tiles, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    f = frame.f

    def weights(strip: Value) -> Value:
        return f.offset(frame.pointer("weights"), strip * strip_depth(frame) * (2 * TILE_BYTES))

    def between(place: Place) -> None:
        # A slab of narrow panels is one panel, one of wide panels usually two: 2 x 2 x 8 lines.
        lines = 8 if width == 64 else _LINES_OF_TWO_TILES
        rounds = place.panel * max(1, width // 32) + place.group
        skipped = (rounds * strip_depth(frame) + place.depth) * (lines * _LINE)
        ahead = f.offset(weights(place.strip + 1), skipped)
        for n in range(lines):
            f.prefetch(f.offset(ahead, n * _LINE))

    each_strip(frame, Sink(frame, epilogue), weights, between)
    return f
