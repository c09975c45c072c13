"""The loops that the AMX kernels share: strips of 32 rows over panels of tokens.

Weights are the rows of a product (signed), activations its columns (unsigned), interleaved by four
channels as `blocks` and `vpdpbusd` read them, so one layout of activations serves every kernel:

    A  16 rows x 64 channels             a packed tile, 1 KB without gaps
    B  16 groups of 4 channels x 16 tokens     in place: a group is one line of a panel's row
    C  16 rows x 16 tokens, int32

Two tiles of A times two of B fill four of C: a tile is loaded per product. With one strip at a
time its weights are read once for all tokens.

    for strip:  for panel:  for 32 tokens:  for 64 channels:  4 loads, 4 products, `between`
                            store C; rows from C through the epilogue
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsefx.backends.cpu.epilogue import Sink
from sparsefx.backends.cpu.frame import Frame
from sparsefx.backends.cpu.ir import Value
from sparsefx.backends.cpu.kernels.amx_tiles import (
    TILE_BYTES,
    TileRegisters,
    full_tiles,
    tiles_of,
)
from sparsefx.backends.cpu.kernels.rowloop import panel_range, row_range
from sparsefx.backends.formats.amx_tiles import STRIP_ROWS, TILE_COLUMNS, TILE_ROWS

__all__ = ["FIELDS", "SUMS_BYTES", "Between", "Place", "each_strip", "strip_depth"]

FIELDS = ("splits", "input", "columns", "initial")

SUMS_BYTES = STRIP_ROWS * 64 * 4
"""Start of the scratch memory: int32 sums of a strip for one panel of 64 tokens."""

_A, _B = (4, 5), (6, 7)
"""Tiles of weights and of activations; 0 to 3 hold the sums."""

_TILE_TOKENS = 16
_B_BYTES = 64
"""From one tile of activations, or of sums, to that of the next 16 tokens."""


@dataclass(frozen=True)
class Place:
    """Where the loops are.

    Attributes:
        strip: Number of the strip.
        last: Strips before this one are this part's.
        panel: Number of the panel among those of this part.
        group: Number of the 32 tokens within the panel.
        depth: Number of the 64 channels.
    """

    strip: Value
    last: Value
    panel: Value
    group: Value
    depth: Value


Between = Callable[[Place], None]
"""Emits what is done beside four products."""


def strip_depth(frame: Frame) -> Value:
    """Tiles in a row of tiles."""
    return (frame.word("columns") + (TILE_COLUMNS - 1)) // TILE_COLUMNS


def each_strip(
    frame: Frame, sink: Sink, weights: Callable[[Value], Value], between: Between
) -> None:
    """Loop over this part's strips and panels.

    Args:
        frame: The kernel.
        sink: What becomes of the sums.
        weights: Where the tiles of a strip lie, given its number.
        between: Called once within the innermost loop.
    """
    f, panel = frame.f, frame.panel
    tiles = tiles_of(f, panel.isa)
    depth = strip_depth(frame)
    source = frame.buffer("input", frame.word("space"))
    panel_bytes = depth * (TILE_COLUMNS * panel.width)
    first, end = panel_range(frame)
    start, last = row_range(frame)
    tiles.configure(f.constant_bytes("amx.config", full_tiles()))
    for strip in f.loop(start, last):
        origin = weights(strip)
        for number in f.loop(0, end - first):
            activations = f.offset(source, panel_bytes * (first + number))
            for group in f.loop(0, max(1, panel.width // 32)):
                tokens = f.offset(activations, group * (2 * _B_BYTES))
                for n in range(2 * _token_tiles(frame)):
                    tiles.zero(n)
                for k in f.loop(0, depth):
                    _products(frame, tiles, origin, tokens, k)
                    between(Place(strip, last, number, group, k))
                _store_sums(frame, tiles, group)
            _finish(frame, sink, strip, first + number)
    tiles.release()


def _token_tiles(frame: Frame) -> int:
    """Tiles of activations that are multiplied together."""
    return min(2, frame.panel.width // _TILE_TOKENS)


def _products(frame: Frame, tiles: TileRegisters, weights: Value, tokens: Value, k: Value) -> None:
    """All products of the tiles of 64 channels."""
    f, row_bytes = frame.f, frame.panel.row_bytes
    count = _token_tiles(frame)
    origin = f.offset(tokens, k * (TILE_COLUMNS // 4 * row_bytes))
    for row, tile in enumerate(_A):
        place = f.offset(weights, (strip_depth(frame) * row + k) * TILE_BYTES)
        tiles.load(tile, place, f.i64(TILE_COLUMNS))
        for n in range(count):
            if row == 0:
                tiles.load(_B[n], f.offset(origin, n * _B_BYTES), f.i64(row_bytes))
            tiles.dot(row * count + n, tile, _B[n])


def _store_sums(frame: Frame, tiles: TileRegisters, group: Value) -> None:
    """Sums of a strip as int32 rows of one panel, at the start of the scratch memory."""
    f, row_bytes = frame.f, frame.panel.row_bytes
    count = _token_tiles(frame)
    place = f.offset(frame.job("scratch"), group * (2 * _B_BYTES))
    for row in range(len(_A)):
        for n in range(count):
            target = f.offset(place, row * TILE_ROWS * row_bytes + n * _B_BYTES)
            tiles.store(row * count + n, target, f.i64(row_bytes))


def _finish(frame: Frame, sink: Sink, strip: Value, panel_number: Value) -> None:
    """Take the rows that exist through the epilogue."""
    f, panel = frame.f, frame.panel
    begin, sums = strip * STRIP_ROWS, frame.job("scratch")
    left = sink.rows - begin
    count = f.select(f.compare(left, "<", STRIP_ROWS), left, f.i64(STRIP_ROWS))
    for n in f.loop(0, count):
        row = begin + n
        seed = f.splat(f.load("i32", f.offset(frame.pointer("initial"), row * 4)), panel.lanes)
        values = panel.load(f, f.offset(sums, n * panel.row_bytes), panel.ints)
        sink.finish([value + seed for value in values], row, panel_number)
