"""The loops that the AMX kernels share: strips of 32 rows over panels of tokens.

Weights are the rows of a product (signed), activations its columns (unsigned), interleaved by four
channels as `blocks` and `vpdpbusd` read them, so one layout of activations serves every kernel:

    A  16 rows x 64 channels             a packed tile, 1 KB without gaps
    B  16 groups of 4 channels x 16 tokens     in place: a group is one line of a panel's row
    C  16 rows x 16 tokens, int32

On bf16 a tile of weights has 32 channels, activations are interleaved by two, sums are fp32, and
`columns` counts the bytes of a row of weights.

Two tiles of A times two of B fill four of C: a tile is loaded per product. With one strip at a
time its weights are read once for all tokens.

    for strip:  for panel:  for 32 tokens:  for 64 channels:  4 loads, 4 products, `between`,
                                                              a few rows of the panel before
                            store C
                            these sums wait

Products take 16 cycles each and few other resources of the core, so the rest is done beside them:
what `between` does for the next strip, and the epilogue of the sums before, of which there are
enough rows to each round that all are finished when the next ones come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.epilogue import Sink
from sparsefx.backends.cpu.codegen.frame import Frame
from sparsefx.backends.cpu.codegen.ir import Value
from sparsefx.backends.cpu.kernels.amx_tiles import (
    TILE_BYTES,
    TileRegisters,
    full_tiles,
    tiles_of,
)
from sparsefx.backends.cpu.kernels.rowloop import row_range
from sparsefx.backends.formats.amx_tiles import STRIP_ROWS, TILE_COLUMNS, TILE_ROWS

__all__ = ["FIELDS", "SUMS_BYTES", "Between", "Place", "each_strip", "strip_depth"]

FIELDS = ("splits", "input", "columns", "initial")

_HALF_BYTES = STRIP_ROWS * 64 * 4
SUMS_BYTES = 2 * _HALF_BYTES
"""Start of the scratch memory: int32 sums of a strip for two panels of 64 tokens."""

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
    tiles, integer = tiles_of(f, panel.isa), sink.integer
    depth, groups = strip_depth(frame), max(1, panel.width // 32)
    source = frame.buffer("input", frame.word("space"))
    panel_bytes = depth * (TILE_COLUMNS * panel.width)
    first, end = frame.panels(frame.word("space"))
    start, last = row_range(frame)
    rounds = depth * groups
    waiting = _Waiting(frame, sink, (rounds + (STRIP_ROWS - 1)) // rounds)
    half = f.var(f.i64(0))
    tiles.configure(f.constant_bytes("amx.config", full_tiles()))
    for strip in f.loop(start, last):
        origin = weights(strip)
        for number in f.loop(0, end - first):
            activations = f.offset(source, panel_bytes * (first + number))
            sums = f.offset(frame.job("scratch"), half.get() * _HALF_BYTES)
            for group in f.loop(0, groups):
                tokens = f.offset(activations, group * (2 * _B_BYTES))
                for n in range(2 * _token_tiles(frame)):
                    tiles.zero(n)
                for k in f.loop(0, depth):
                    _products(frame, tiles, origin, tokens, k, integer=integer)
                    between(Place(strip, last, number, group, k))
                    waiting.some()
                _store_sums(frame, tiles, f.offset(sums, group * (2 * _B_BYTES)))
            waiting.put(sums, strip, first + number)
            half.set(f.i64(1) - half.get())
    waiting.rest()
    tiles.release()


def _token_tiles(frame: Frame) -> int:
    """Tiles of activations that are multiplied together."""
    return min(2, frame.panel.width // _TILE_TOKENS)


def _products(
    frame: Frame, tiles: TileRegisters, weights: Value, tokens: Value, k: Value, *, integer: bool
) -> None:
    """All products of the tiles of 64 bytes of channels."""
    f, row_bytes = frame.f, frame.panel.row_bytes
    count = _token_tiles(frame)
    origin = f.offset(tokens, k * (TILE_COLUMNS // 4 * row_bytes))
    for row, tile in enumerate(_A):
        place = f.offset(weights, (strip_depth(frame) * row + k) * TILE_BYTES)
        tiles.load(tile, place, f.i64(TILE_COLUMNS))
        for n in range(count):
            if row == 0:
                tiles.load(_B[n], f.offset(origin, n * _B_BYTES), f.i64(row_bytes))
            dot = tiles.dot if integer else tiles.dot_bf16
            dot(row * count + n, tile, _B[n])


def _store_sums(frame: Frame, tiles: TileRegisters, place: Value) -> None:
    """Store the sums of a strip and 32 tokens into int32 rows of one panel."""
    f, row_bytes = frame.f, frame.panel.row_bytes
    count = _token_tiles(frame)
    for row in range(len(_A)):
        for n in range(count):
            target = f.offset(place, row * TILE_ROWS * row_bytes + n * _B_BYTES)
            tiles.store(row * count + n, target, f.i64(row_bytes))


class _Waiting:
    """The sums of one strip and panel on their way through the epilogue, a few rows at a time.

    Args:
        frame: The kernel.
        sink: The epilogue.
        few: Rows to take at a time.
    """

    def __init__(self, frame: Frame, sink: Sink, few: Value) -> None:
        f = frame.f
        self._frame, self._sink, self._few = frame, sink, few
        self._next, self._stop, self._first, self._panel = (f.var(f.i64(0)) for _ in range(4))
        self._sums = f.var(frame.job("scratch"))

    def put(self, sums: Value, strip: Value, panel_number: Value) -> None:
        """Take over the sums at `sums`; those before are finished."""
        f, first = self._frame.f, strip * STRIP_ROWS
        stop = first + STRIP_ROWS
        self._first.set(first)
        self._next.set(first)
        self._stop.set(f.select(f.compare(stop, "<", self._sink.rows), stop, self._sink.rows))
        self._panel.set(panel_number)
        self._sums.set(sums)

    def some(self) -> None:
        """Finish a few rows."""
        f, stop = self._frame.f, self._stop.get()
        enough = self._next.get() + self._few
        self._until(f.select(f.compare(enough, "<", stop), enough, stop))

    def rest(self) -> None:
        """Finish all rows that are left."""
        self._until(self._stop.get())

    def _until(self, limit: Value) -> None:
        f, panel = self._frame.f, self._frame.panel
        integer, initial = self._sink.integer, self._frame.pointer("initial")
        for row in f.loop(self._next.get(), limit):
            place = f.offset(self._sums.get(), (row - self._first.get()) * panel.row_bytes)
            sums = panel.load(f, place, panel.ints if integer else panel.floats)
            if integer:
                seed = f.splat(f.load("i32", f.offset(initial, row * 4)), panel.lanes)
                sums = [value + seed for value in sums]
            self._sink.finish(sums, row, self._panel.get())
        self._next.set(limit)
