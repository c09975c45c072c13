"""The tile registers of AMX, as instructions or as a model of them in ordinary code.

Eight registers of 16 rows x 64 bytes. A kernel numbers them itself: it configures them on entry and
releases them on exit, so no tile is alive outside a kernel, and no thread sleeps with live tiles.
All tiles have the full shape; weights and activations are filled with zeros instead.

The model stands in where there is no AMX, for tests. It follows the operations of Intel's manual
(Software Developer's Manual 2: LDTILECFG, TILELOADD, TDPBSUD, TILESTORED, ...) for tiles of any
shape, and dies of an illegal instruction of a configuration or of tiles that do not fit. It takes
only fresh configurations of palette 1: start_row and reserved bytes are zero. Faults of memory are
those of ordinary code. It computes byte by byte and shares nothing with the other kernels.
"""

from __future__ import annotations

from typing import Protocol

from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = ["TILE_BYTES", "HardwareTiles", "ModelTiles", "TileRegisters", "full_tiles", "tiles_of"]

TILE_BYTES = 1024
_ROWS, _ROW_BYTES, _COUNT = 16, 64, 8
_CONFIG_BYTES = 64
_COLSB, _ROW_COUNTS = 16, 48
"""Where a configuration holds the bytes per row (uint16) and the rows (uint8) of each tile."""
_ZEROS = ((1, 16), (32, 48), (56, 64))
"""start_row and reserved bytes."""


def full_tiles() -> bytes:
    """The 64 bytes that configure eight tiles of 16 rows x 64 bytes (palette 1)."""
    config = bytearray(_CONFIG_BYTES)
    config[0] = 1
    for tile in range(_COUNT):
        config[_COLSB + 2 * tile] = _ROW_BYTES
        config[_ROW_COUNTS + tile] = _ROWS
    return bytes(config)


class TileRegisters(Protocol):
    """Emits tile operations; tiles are numbers from 0 to 7."""

    def configure(self, config: Value) -> None:
        """Take the shapes of the tiles from 64 bytes at `config`, and set all tiles to zero."""

    def release(self) -> None:
        """Forget shapes and tiles."""

    def zero(self, tile: int) -> None:
        """Set a tile to zero."""

    def load(self, tile: int, pointer: Value, stride: Value) -> None:
        """Load a tile whose rows lie `stride` bytes (i64) apart."""

    def store(self, tile: int, pointer: Value, stride: Value) -> None:
        """Store a tile, rows `stride` bytes apart."""

    def dot(self, total: int, left: int, right: int) -> None:
        """Add int8 `left` [m, k, 4] x uint8 `right` [k, n, 4] to the int32 [m, n] of `total`.

        Each int32 gets k sums of four products.
        """

    def dot_bf16(self, total: int, left: int, right: int) -> None:
        """Add bf16 `left` [m, k, 2] x bf16 `right` [k, n, 2] to the fp32 [m, n] of `total`."""


def tiles_of(f: Function, isa: Isa) -> TileRegisters:
    """The tile registers of an instruction set inside the kernel `f`."""
    return ModelTiles(f) if isa.tiles == "model" else HardwareTiles(f)


class HardwareTiles:
    """AMX instructions."""

    def __init__(self, f: Function) -> None:
        self._f = f

    def configure(self, config: Value) -> None:
        """LDTILECFG."""
        self._f.intrinsic("llvm.x86.ldtilecfg", "void", config)

    def release(self) -> None:
        """TILERELEASE."""
        self._f.intrinsic("llvm.x86.tilerelease", "void")

    def zero(self, tile: int) -> None:
        """TILEZERO."""
        self._f.intrinsic("llvm.x86.tilezero", "void", self._number(tile))

    def load(self, tile: int, pointer: Value, stride: Value) -> None:
        """TILELOADD."""
        self._f.intrinsic("llvm.x86.tileloadd64", "void", self._number(tile), pointer, stride)

    def store(self, tile: int, pointer: Value, stride: Value) -> None:
        """TILESTORED."""
        self._f.intrinsic("llvm.x86.tilestored64", "void", self._number(tile), pointer, stride)

    def dot(self, total: int, left: int, right: int) -> None:
        """TDPBSUD."""
        numbers = (self._number(tile) for tile in (total, left, right))
        self._f.intrinsic("llvm.x86.tdpbsud", "void", *numbers)

    def dot_bf16(self, total: int, left: int, right: int) -> None:
        """TDPBF16PS."""
        numbers = (self._number(tile) for tile in (total, left, right))
        self._f.intrinsic("llvm.x86.tdpbf16ps", "void", *numbers)

    def _number(self, tile: int) -> Value:
        return self._f.const("i8", tile)


class ModelTiles:
    """The same in ordinary code, on memory of the kernel's own stack."""

    def __init__(self, f: Function) -> None:
        self._f = f
        self._config = f.room(_CONFIG_BYTES)
        self._tiles = f.room(_COUNT * TILE_BYTES)
        self._clear(self._config, _CONFIG_BYTES)

    def configure(self, config: Value) -> None:
        """LDTILECFG: #GP unless the palette is 1 and no tile exceeds 16 rows x 64 bytes.

        A tile has rows and columns or neither, and reserved bytes are zero. So is start_row here:
        only an interrupted load or store needs another one.
        """
        f = self._f
        self._require(f.compare(f.load("i8", config), "==", 1))
        for first, end in _ZEROS:
            for n in f.loop(first, end):
                self._require(f.compare(f.load("i8", f.offset(config, n)), "==", 0))
        for n in f.loop(0, _CONFIG_BYTES):
            f.store(f.load("i8", f.offset(config, n)), f.offset(self._config, n))
        for tile in range(_COUNT):
            self._require(f.compare(self._rows(tile), "<=", _ROWS))
            self._require(f.compare(self._row_bytes(tile), "<=", _ROW_BYTES))
            filled = f.compare(self._rows(tile), ">", 0)
            wide = f.compare(self._row_bytes(tile), ">", 0)
            self._require(f.compare(filled, "==", wide))
        self._clear(self._tiles, _COUNT * TILE_BYTES)

    def release(self) -> None:
        """TILERELEASE."""
        self._clear(self._config, _CONFIG_BYTES)
        self._clear(self._tiles, _COUNT * TILE_BYTES)

    def zero(self, tile: int) -> None:
        """TILEZERO."""
        self._require_valid(tile)
        self._clear(self._row(tile, self._f.i64(0)), TILE_BYTES)

    def load(self, tile: int, pointer: Value, stride: Value) -> None:
        """TILELOADD: what lies behind the tile's rows and columns becomes zero."""
        f = self._f
        self._require_valid(tile)
        self._clear(self._row(tile, f.i64(0)), TILE_BYTES)
        for row in f.loop(0, self._rows(tile)):
            for n in f.loop(0, self._row_bytes(tile)):
                value = f.load("i8", f.offset(pointer, row * stride + n))
                f.store(value, f.offset(self._row(tile, row), n))

    def store(self, tile: int, pointer: Value, stride: Value) -> None:
        """TILESTORED."""
        f = self._f
        self._require_valid(tile)
        for row in f.loop(0, self._rows(tile)):
            for n in f.loop(0, self._row_bytes(tile)):
                value = f.load("i8", f.offset(self._row(tile, row), n))
                f.store(value, f.offset(pointer, row * stride + n))

    def dot(self, total: int, left: int, right: int) -> None:
        """TDPBSUD: #UD unless the tiles differ and their shapes fit."""
        f = self._f
        self._require_fit(total, left, right)
        for m in f.loop(0, self._rows(total)):
            for k in f.loop(0, self._row_bytes(left) // 4):
                for n in f.loop(0, self._row_bytes(right) // 4):
                    a = f.offset(self._row(left, m), k * 4)
                    b = f.offset(self._row(right, k), n * 4)
                    self._add_four(f.offset(self._row(total, m), n * 4), a, b)

    def dot_bf16(self, total: int, left: int, right: int) -> None:
        """TDPBF16PS: even and odd products of a row add up apart, rounded once each (FMA)."""
        f = self._f
        self._require_fit(total, left, right)
        for m in f.loop(0, self._rows(total)):
            for n in f.loop(0, self._row_bytes(right) // 4):
                sums = [f.var(f.const("float", 0)) for _ in range(2)]
                for k in f.loop(0, self._row_bytes(left) // 4):
                    a = f.offset(self._row(left, m), k * 4)
                    b = f.offset(self._row(right, k), n * 4)
                    for half, part in enumerate(sums):
                        x, y = (self._bf16(f.offset(place, 2 * half)) for place in (a, b))
                        part.set(f.fma(x, y, part.get()))
                place = f.offset(self._row(total, m), n * 4)
                both = f.operate("fadd", sums[0].get(), sums[1].get())
                f.store(f.operate("fadd", f.load("float", place), both), place)

    def _bf16(self, place: Value) -> Value:
        """A bf16 as fp32."""
        f = self._f
        return f.convert("bitcast", f.convert("zext", f.load("i16", place), "i32") << 16, "float")

    def _require_fit(self, total: int, left: int, right: int) -> None:
        """#UD unless the tiles differ and their shapes fit."""
        f = self._f
        for tile in (total, left, right):
            self._require_valid(tile)
        self._require(f.const("i1", len({total, left, right}) == 3))
        for tile in (total, left, right):
            self._require(f.compare(self._row_bytes(tile) & 3, "==", 0))
        self._require(f.compare(self._rows(total), "==", self._rows(left)))
        self._require(f.compare(self._row_bytes(total), "==", self._row_bytes(right)))
        self._require(f.compare(self._row_bytes(left) // 4, "==", self._rows(right)))

    def _add_four(self, place: Value, left: Value, right: Value) -> None:
        """Add four products of bytes to the int32 at `place`."""
        f = self._f
        value = f.load("i32", place)
        for byte in range(4):
            a = f.convert("sext", f.load("i8", f.offset(left, byte)), "i32")
            b = f.convert("zext", f.load("i8", f.offset(right, byte)), "i32")
            value = value + a * b
        f.store(value, place)

    def _rows(self, tile: int) -> Value:
        f = self._f
        return f.convert("zext", f.load("i8", f.offset(self._config, _ROW_COUNTS + tile)), "i64")

    def _row_bytes(self, tile: int) -> Value:
        f = self._f
        return f.convert("zext", f.load("i16", f.offset(self._config, _COLSB + 2 * tile)), "i64")

    def _row(self, tile: int, row: Value) -> Value:
        return self._f.offset(self._tiles, row * _ROW_BYTES + tile * TILE_BYTES)

    def _clear(self, pointer: Value, size: int) -> None:
        f = self._f
        for n in f.loop(0, size // 8):
            f.store(f.i64(0), f.offset(pointer, n * 8))

    def _require_valid(self, tile: int) -> None:
        """A tile is valid once it is configured with rows and columns."""
        f = self._f
        self._require(f.compare(f.load("i8", self._config), "==", 1))
        self._require(f.compare(self._rows(tile) * self._row_bytes(tile), ">", 0))

    def _require(self, condition: Value) -> None:
        """The processor raises #UD (#GP for a configuration) unless this holds."""
        f = self._f
        with f.when(f.operate("xor", condition, f.const("i1", 1))):
            f.intrinsic("llvm.trap", "void")
