"""All kernels by kind: what their step holds, and how their code is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsefx.backends.cpu.epilogue import Epilogue
from sparsefx.backends.cpu.ir import Function
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels import (
    attention,
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


@dataclass(frozen=True)
class Kernel:
    """One kernel: its kind, the words of its step, and its emitter."""

    kind: str
    fields: tuple[str, ...]
    emit: Callable[[Isa, int], Function]


_LINEARS = {"quads": quads, "rows": rows, "dense_i8": dense_i8, "dense_f32": dense_f32}


def linear(kind: str, epilogue: Epilogue) -> Kernel:
    """A linear layer in one of the formats quads, rows, dense_i8, dense_f32."""
    module = _LINEARS[kind]
    return Kernel(
        f"{kind} {epilogue.symbol}",
        module.FIELDS,
        lambda isa, width: module.emit(isa, width, epilogue),
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
    "attention": Kernel("attention", attention.FIELDS, attention.emit),
    "quantize": Kernel("quantize", convert.QUANTIZE_FIELDS, convert.emit_quantize),
    "expand": Kernel("expand", convert.EXPAND_FIELDS, convert.emit_expand),
    "pick": Kernel("pick", transfer.PICK_FIELDS, transfer.emit_pick),
    "unpack": Kernel("unpack", transfer.UNPACK_FIELDS, transfer.emit_unpack),
}


def other(kind: str) -> Kernel:
    """A kernel without options: attention, quantize, expand, pick, unpack."""
    return _OTHERS[kind]
