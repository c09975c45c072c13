"""All kernels by kind: what their step holds, and how their code is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsefx.backends.cpu.epilogue import Epilogue
from sparsefx.backends.cpu.ir import Function
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels import (
    attention,
    attention_i8,
    convert,
    dense_f32,
    dense_i8,
    embed,
    norm,
    quads,
    rows,
    transfer,
)

__all__ = ["Kernel", "elementwise", "linear", "norm_kernel", "other"]


def _no_scratch(words: Mapping[str, Any], longest: int) -> int:
    return 0


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        kind: What it is called in listings.
        fields: Words of its step.
        emit: Its code for an instruction set and a panel width.
        scratch: Bytes that a thread needs, given the step's words and the longest sequence.
    """

    kind: str
    fields: tuple[str, ...]
    emit: Callable[[Isa, int], Function]
    scratch: Callable[[Mapping[str, Any], int], int] = _no_scratch


_LINEARS = {"quads": quads, "rows": rows, "dense_i8": dense_i8, "dense_f32": dense_f32}


def linear(kind: str, epilogue: Epilogue) -> Kernel:
    """A linear layer in one of the formats quads, rows, dense_i8, dense_f32."""
    module = _LINEARS[kind]
    return Kernel(
        f"{kind} {epilogue.symbol}",
        module.FIELDS,
        lambda isa, width: module.emit(isa, width, epilogue),
        # Partial sums of the rows of one panel wait there between blocks of channels.
        lambda words, longest: 256 * int(words["rows"]) if kind == "rows" else 0,
    )


def norm_kernel(*, floats: bool, octets: bool) -> Kernel:
    """Layer norm that writes fp32, uint8 or both."""
    return Kernel(
        "norm", norm.FIELDS, lambda isa, width: norm.emit(isa, width, floats=floats, octets=octets)
    )


def elementwise(operation: str) -> Kernel:
    """An operation on whole buffers: add, mul or an activation."""
    return Kernel(
        operation,
        convert.ELEMENTWISE_FIELDS,
        lambda isa, width: convert.emit_elementwise(isa, width, operation),
    )


def embedding(tables: int) -> Kernel:
    """Sum of embedding rows from several tables."""
    return Kernel("embed", embed.fields(tables), lambda isa, width: embed.emit(isa, width, tables))


_OTHERS = {
    "attention": Kernel(
        "attention",
        attention.FIELDS,
        attention.emit,
        lambda words, longest: attention.scratch_bytes(longest),
    ),
    "attention_i8": Kernel(
        "attention_i8",
        attention.FIELDS,
        attention_i8.emit,
        lambda words, longest: attention_i8.scratch_bytes(longest, int(words["head_size"])),
    ),
    "quantize": Kernel("quantize", convert.QUANTIZE_FIELDS, convert.emit_quantize),
    "expand": Kernel("expand", convert.EXPAND_FIELDS, convert.emit_expand),
    "pick": Kernel("pick", transfer.PICK_FIELDS, transfer.emit_pick),
    "unpack": Kernel("unpack", transfer.UNPACK_FIELDS, transfer.emit_unpack),
}


def other(kind: str) -> Kernel:
    """A kernel without options: attention, attention_i8, quantize, expand, pick, unpack."""
    return _OTHERS[kind]
