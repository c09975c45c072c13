"""int8 linear on AMX tiles for unstructured zeros: only the non-zeros are read.

Zeros are multiplied too, but weights come from memory as one bit each and one byte per non-zero.
`vpexpandb` spreads them into the tiles of a strip in the scratch memory:

    masks 64 bits, values a b c ...  -->  0 a 0 0 b c 0 ...     one row of a tile

Two strips lie there: while one is multiplied, the next is expanded beside the products of the
part's first panel, for both use other ports of the core. The start of every tile's values is
stored, so that nothing waits for the count of non-zeros before it.

Weights: `masks` uint64 [rows of tiles][tiles of a row][16], `starts` uint32 [rows of tiles][tiles
of a row], `weights` int8 (see `formats/amx_tiles`); `initial` int32[rows] starts the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefx.backends.cpu.codegen.epilogue import EPILOGUE_FIELDS, Epilogue, Sink
from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels import amx_strips
from sparsefx.backends.cpu.kernels.amx_strips import SUMS_BYTES, Place, each_strip, strip_depth
from sparsefx.backends.cpu.kernels.amx_tiles import TILE_BYTES
from sparsefx.backends.cpu.kernels.rowloop import row_range
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.formats.amx_tiles import TILE_COLUMNS, TILE_ROWS

__all__ = ["FIELDS", "emit", "scratch_bytes", "symbol"]

FIELDS = (*EPILOGUE_FIELDS, *amx_strips.FIELDS, "masks", "starts", "weights")

_LINE = vector(TILE_COLUMNS, "i8")


def symbol(isa: Isa, width: int, epilogue: Epilogue) -> str:
    """Name of the kernel."""
    return f"masked_amx_{isa.name}_w{width}_{epilogue.symbol}"


def scratch_bytes(words: Mapping[str, Any]) -> int:
    """Scratch memory of a part: sums, then two strips."""
    depth = -(-int(words["columns"]) // TILE_COLUMNS)
    return SUMS_BYTES + 2 * (2 * TILE_BYTES * depth)


def emit(isa: Isa, width: int, epilogue: Epilogue) -> Function:
    """The kernel for one instruction set with tiles, panel width and epilogue."""
    frame = open_frame(symbol(isa, width, epilogue), Panel(isa, width), FIELDS)
    f = frame.f
    start, last = row_range(frame)
    with f.when(f.compare(start, "<", last)):
        for k in f.loop(0, strip_depth(frame)):
            for row in range(2):
                _expand(frame, start, f.i64(row), k)
    each_strip(
        frame,
        Sink(frame, epilogue),
        lambda strip: _strip(frame, strip),
        lambda place: _expand_next(frame, place),
    )
    return f


def _expand_next(frame: Frame, place: Place) -> None:
    """Expand a part of the next strip: both tiles of a depth, or one for each 32 of 64 tokens."""
    f = frame.f
    following = place.strip + 1
    wanted = f.compare(following, "<", place.last) & f.compare(place.panel, "==", 0)
    with f.when(wanted):
        rows = [place.group] if frame.panel.width == 64 else [f.i64(0), f.i64(1)]
        for row in rows:
            _expand(frame, following, row, place.depth)


def _strip(frame: Frame, strip: Value) -> Value:
    """Where a strip is expanded to."""
    f = frame.f
    size = strip_depth(frame) * (2 * TILE_BYTES)
    return f.offset(f.offset(frame.job("scratch"), SUMS_BYTES), (strip & 1) * size)


def _expand(frame: Frame, strip: Value, row: Value, k: Value) -> None:
    """Expand tile `k` in row of tiles 0 or 1 of a strip."""
    f, depth = frame.f, strip_depth(frame)
    number = (strip * 2 + row) * depth + k
    begin = f.convert("zext", f.load("i32", f.offset(frame.pointer("starts"), number * 4)), "i64")
    values = f.offset(frame.pointer("weights"), begin)
    masks = f.offset(frame.pointer("masks"), number * (8 * TILE_ROWS))
    target = f.offset(_strip(frame, strip), (row * depth + k) * TILE_BYTES)
    for n in range(TILE_ROWS):
        mask = f.index("i64", masks, n)
        chosen = f.convert("bitcast", mask, vector(TILE_COLUMNS, "i1"))
        zero = f.const(_LINE, 0)
        line = f.intrinsic("llvm.masked.expandload.v64i8", _LINE, values, chosen, zero)
        f.store(line, f.offset(target, n * TILE_COLUMNS), TILE_COLUMNS)
        values = f.offset(values, f.intrinsic("llvm.ctpop.i64", "i64", mask))
