"""The fastest that a core can multiply: products on registers alone, to hold kernels against."""

from __future__ import annotations

from typing import Literal

from sparsefx.backends.cpu.codegen.frame import Frame, open_frame
from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.panel import Panel
from sparsefx.backends.cpu.kernels.amx_tiles import full_tiles, tiles_of
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.formats.amx_tiles import TILE_COLUMNS, TILE_ROWS

__all__ = ["CHAINS", "FIELDS", "Unit", "emit", "products"]

CHAINS = 10
"""Sums that do not wait for each other: latency times products per cycle, and some."""

FIELDS = ("rounds", "space")

Unit = Literal["fmas", "dots", "shorts", "tiles"]
"""fp32 multiply-adds, int8 dot products of vectors, products of 16-bit floats, of int8 tiles."""

TILE_SUMS = 4
"""Sums of tiles that do not wait for each other."""


def products(isa: Isa, unit: Unit) -> int:
    """Multiply-adds of one round."""
    if unit == "tiles":
        return TILE_SUMS * TILE_ROWS * TILE_COLUMNS * 16
    return CHAINS * isa.lanes * {"fmas": 1, "shorts": 2, "dots": 4}[unit]


def emit(isa: Isa, width: int, unit: Unit) -> Function:
    """`rounds` times the products of one unit on registers alone."""
    frame = open_frame(f"peak_{isa.name}_w{width}_{unit}", Panel(isa, width), FIELDS)
    if unit == "tiles":
        _tiles(frame)
        return frame.f
    f, panel = frame.f, frame.panel
    type_ = panel.ints if unit == "dots" else panel.floats
    if unit == "shorts" and isa.short == "fp16":
        type_ = vector(2 * panel.lanes, "half")
    source = frame.job("scratch")
    a, b = (f.load(type_, f.offset(source, n * 64)) for n in (0, 1))
    sums = [f.var(f.load(type_, f.offset(source, (n + 2) * 64))) for n in range(CHAINS)]
    for _ in f.loop(0, frame.word("rounds")):
        for total in sums:
            total.set(_product(frame, total.get(), a, b, unit))
    for n, total in enumerate(sums):
        f.store(total.get(), f.offset(source, (n + 2) * 64))
    return f


def _tiles(frame: Frame) -> None:
    """Products of tiles that are zero: what is in them does not change their time."""
    f = frame.f
    tiles = tiles_of(f, frame.panel.isa)
    tiles.configure(f.constant_bytes("amx.config", full_tiles()))
    for n in range(8):
        tiles.zero(n)
    for _ in f.loop(0, frame.word("rounds")):
        for n in range(TILE_SUMS):
            tiles.dot(n, TILE_SUMS + n // 2, TILE_SUMS + 2 + n % 2)
    tiles.release()


def _product(frame: Frame, total: Value, a: Value, b: Value, unit: Unit) -> Value:
    if unit == "dots":
        return frame.panel.dot(frame.f, total, a, b)
    if unit == "shorts" and frame.panel.isa.short == "bf16":
        return frame.panel.dot_bf16(frame.f, total, a, b)
    if unit == "shorts":
        return frame.panel.fma_fp16(frame.f, a, b, total)
    return frame.f.fma(a, b, total)
