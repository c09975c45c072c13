"""What the dense kernels share: tiles of six rows whose sums stay in registers together."""

from __future__ import annotations

from collections.abc import Callable

from sparsefx.backends.cpu.codegen.epilogue import Sink
from sparsefx.backends.cpu.codegen.frame import Frame
from sparsefx.backends.cpu.codegen.ir import Value, Var
from sparsefx.backends.cpu.kernels.rowloop import row_range

__all__ = ["FIELDS", "TILE_ROWS", "TileSums", "each_tile", "initial_sums"]

TILE_ROWS = 6
"""24 sums of 32 registers; 12 of 16."""

FIELDS = ("splits", "input", "columns", "weights", "initial")

TileSums = Callable[[Frame, Value, Value, int], list[list[Var]]]
"""Sums of six rows: frame, first vector of the panel's channel 0, number of the tile, vectors."""


def each_tile(frame: Frame, sink: Sink, item: int, together: int, tile_sums: TileSums) -> None:
    """Loop over this part's panels and tiles, `together` vectors of tokens at a time.

    Args:
        frame: The kernel.
        sink: What becomes of the sums.
        item: Bytes of one activation.
        together: Vectors of tokens whose sums stay in registers.
        tile_sums: Emits the sums of one tile.
    """
    f, panel = frame.f, frame.panel
    space = frame.word("space")
    source = frame.buffer("input", space)
    panel_bytes = frame.word("columns") * (panel.width * item)
    start, stop = row_range(frame)
    for number in f.loop(*frame.panels(space)):
        values = f.offset(source, panel_bytes * number)
        for tile in f.loop(start, stop):
            for first in range(0, panel.vectors, together):
                shifted = f.offset(values, first * panel.lanes * item)
                for n, sums in enumerate(tile_sums(frame, shifted, tile, together)):
                    row = tile * TILE_ROWS + n
                    with f.when(f.compare(row, "<", sink.rows)):
                        sink.finish([s.get() for s in sums], row, number, first)


def initial_sums(frame: Frame, tile: Value, together: int) -> list[list[Var]]:
    """int32 sums of six rows that start with `initial`."""
    f, panel = frame.f, frame.panel
    sums = []
    for n in range(TILE_ROWS):
        place = f.offset(frame.pointer("initial"), (tile * TILE_ROWS + n) * 4)
        seed = f.splat(f.load("i32", place), panel.lanes)
        sums.append([f.var(seed) for _ in range(together)])
    return sums
