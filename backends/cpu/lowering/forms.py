"""Values in the forms that kernels read: steps that write a buffer in another way, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from sparsefx.backends.cpu.analyses.values import Embedded, Octets, Rows, Table
from sparsefx.backends.cpu.codegen.panel import interleaved_rows, paired_rows
from sparsefx.backends.cpu.kernels.embed import FIRST_INDEX_TABLE
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.plan.weights import SHORT, TILED, Format

__all__ = ["Forms"]


class Forms:
    """What was written of the buffers and embeddings of one walk.

    Args:
        isa: Instruction set.
        steps: Of the walk; new ones come last.
        indices: Of the walk: the nodes of its arrays of indices by name, None for positions.
    """

    def __init__(self, isa: Isa, steps: list[Step], indices: dict[str, fx.Node | None]) -> None:
        self._isa, self._steps, self._indices = isa, steps, indices
        self._known: dict[tuple[Buffer, str], Buffer] = {}
        self._embedded: list[tuple[Embedded, Rows]] = []

    def read_as(self, value: Rows | Octets, format: Format, *, integer: bool) -> Buffer:
        """A value as the kernel of a format reads it."""
        if isinstance(value, Octets) and integer and format in ("rows", "dense_f32"):
            # The bytes themselves as fp32, for arithmetic without a dot product.
            return self._expanded(value, ".integers", 1.0, 0)
        if isinstance(value, Octets) and (format == "blocks" or format in TILED):
            return self._interleaved(value.buffer)
        if format == "dense_amx_bf16":
            return self._paired(value.buffer)
        return self._shortened(value.buffer) if format in SHORT else value.buffer

    def floats(self, value: Octets) -> Buffer:
        """What uint8 codes mean, as fp32."""
        return self._expanded(value, ".floats", value.scale, value.zero_point)

    def part(self, source: Buffer, first: int, rows: int) -> Buffer:
        """Some fp32 rows of a buffer that follow each other."""
        words: dict[str, Word] = {"first": first, "input_rows": source.rows}
        return self._write("copy", source, f"[{first}:{first + rows}]", (rows, 4), words)

    def quantized(self, source: Rows, name: str, scale: float, zero_point: int) -> Octets:
        """fp32 rows as uint8 codes in the buffer `name`; written by every call."""
        target = Buffer(name, source.buffer.rows, 1, source.buffer.space)
        words: dict[str, Word] = {"inverse_scale": 1.0 / scale, "zero_point": zero_point}
        self._add("quantize", source.buffer, target, words)
        return Octets(target, scale, zero_point, kept=source.kept)

    def embedding(self, value: Embedded) -> Rows:
        """The rows of a sum of embeddings."""
        for known, rows in self._embedded:
            if known is value:
                return rows
        channels = value.tables[0].rows.shape[1]
        stride = -(-channels // self._isa.lanes) * self._isa.lanes
        name = "positions" if value.indices == (None,) else "embedding"
        target = Buffer(name, channels, 4)
        words: dict[str, Any] = {"output": target, "rows": channels, "stride": stride}
        for n, (table, index) in enumerate(zip(value.tables, value.indices, strict=True)):
            words |= _table_words(table, n, stride)
            read = index.name if index is not None else "positions"
            self._indices.setdefault(read, index)
            words[f"indices{n}"] = FIRST_INDEX_TABLE + list(self._indices).index(read)
        stored = ("fp32" if t.scales is None else "int8" for t in value.tables)
        self._steps.append(Step(catalog.embedding(*stored), words, target.name))
        self._embedded.append((value, Rows(target)))
        return Rows(target)

    def _expanded(self, value: Octets, form: str, scale: float, zero_point: int) -> Buffer:
        """uint8 codes as fp32."""
        source, words = value.buffer, {"scale": scale, "zero_point": zero_point}
        return self._write("expand", source, form, (source.rows, 4), words)

    def _shortened(self, source: Buffer) -> Buffer:
        """fp32 rows as floats of 16 bits."""
        return self._write("shorten", source, ".short", (source.rows, 2), {})

    def _paired(self, source: Buffer) -> Buffer:
        """fp32 rows as bf16 with two channels together, for tiles."""
        shape = (paired_rows(source.rows), 2)
        return self._write("pair", source, ".paired", shape, {"columns": source.rows})

    def _interleaved(self, source: Buffer) -> Buffer:
        """uint8 rows with four channels together, for blocks and tiles."""
        shape = (interleaved_rows(source.rows, self._isa), 1)
        return self._write("interleave", source, ".interleaved", shape, {"columns": source.rows})

    def _write(
        self,
        kernel: str,
        source: Buffer,
        form: str,
        shape: tuple[int, int],
        words: Mapping[str, Word],
    ) -> Buffer:
        """The buffer of a form, (rows, bytes of a value); a step writes it if none has."""
        key = (source, form)
        if key not in self._known:
            self._known[key] = Buffer(f"{source.name}{form}", *shape, source.space)
            self._add(kernel, source, self._known[key], words)
        return self._known[key]

    def _add(self, name: str, source: Buffer, target: Buffer, words: Mapping[str, Word]) -> None:
        kernel = catalog.other(name)
        output = "output_bytes" if "output_bytes" in kernel.fields else "output"
        shared: dict[str, Word] = {"rows": target.rows, "input": source, output: target}
        every = {**shared, "space": target.space, **words}
        self._steps.append(Step(kernel, every, target.name))


def _table_words(table: Table, number: int, stride: int) -> dict[str, Word]:
    """Words of table `number` of an embedding, with rows of `stride` values."""
    rows = table.rows.detach()
    rows = rows.float() if table.scales is None else rows
    array = np.ascontiguousarray(rows.numpy())
    if stride != array.shape[1]:
        array = np.pad(array, ((0, 0), (0, stride - array.shape[1])))
    words: dict[str, Word] = {f"table{number}": array}
    if table.scales is not None:
        words[f"scales{number}"] = np.ascontiguousarray(table.scales.numpy())
    return words
