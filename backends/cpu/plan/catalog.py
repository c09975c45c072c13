"""All kernels by kind: what their step holds, and how their code is made.

Every kernel exists once: steps that need the same code share the same Kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.kernels import (
    attention,
    attention_amx,
    attention_i8,
    blocks,
    convert,
    dense_amx,
    dense_bf16,
    dense_f32,
    dense_i8,
    distances,
    embed,
    masked_amx,
    norm,
    peak,
    quads,
    relative,
    rotate,
    rows,
    rows_bf16,
    rows_fp16,
    transfer,
    unit_length,
)
from sparsefx.backends.cpu.machine.isa import Isa

__all__ = [
    "Kernel",
    "attention_by_distance",
    "attention_by_position",
    "elementwise",
    "embedding",
    "linear",
    "named",
    "norm_kernel",
    "other",
    "peak_kernel",
]


def _no_scratch(words: Mapping[str, Any], longest: int) -> int:
    return 0


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel.

    Attributes:
        spec: Its name as JSON values; `named` finds it by them.
        kind: What it is called in listings.
        fields: Words of its step.
        emit: Its code for an instruction set and a panel width.
        scratch: Bytes that a thread needs, given the step's words and the longest sequence.
    """

    spec: tuple[Any, ...]
    kind: str
    fields: tuple[str, ...]
    emit: Callable[[Isa, int], Function]
    scratch: Callable[[Mapping[str, Any], int], int] = _no_scratch

    def code(self, isa: Isa, width: int) -> tuple[str, str]:
        """Symbol and IR for an instruction set and a panel width; emitted once."""
        return _emitted(self, isa, width)


@cache
def _emitted(kernel: Kernel, isa: Isa, width: int) -> tuple[str, str]:
    function = kernel.emit(isa, width)
    return function.name, function.text()


_LINEARS = {
    "quads": quads,
    "blocks": blocks,
    "rows": rows,
    "dense_i8": dense_i8,
    "dense_f32": dense_f32,
    "dense_amx": dense_amx,
    "masked_amx": masked_amx,
    "rows_bf16": rows_bf16,
    "dense_bf16": dense_bf16,
    "rows_fp16": rows_fp16,
    "dense_amx_bf16": dense_amx,
}


@cache
def linear(kind: str, epilogue: Epilogue) -> Kernel:
    """A linear layer in one of the formats (see `weights.FORMATS`)."""
    module = _LINEARS[kind]
    scratch = getattr(module, "scratch_bytes", None)
    return Kernel(
        ("linear", kind, asdict(epilogue)),
        f"{kind} {epilogue.symbol}",
        module.FIELDS,
        lambda isa, width: module.emit(isa, width, epilogue),
        lambda words, longest: scratch(words) if scratch else 0,
    )


@cache
def norm_kernel(*, floats: bool, octets: bool, centred: bool = True) -> Kernel:
    """Layer norm, or RMS norm if it is not `centred`, that writes fp32, uint8 or both."""
    return Kernel(
        ("norm" if centred else "rms_norm", floats, octets),
        "norm" if centred else "rms_norm",
        norm.FIELDS if centred else norm.RMS_FIELDS,
        lambda isa, width: norm.emit(isa, width, floats=floats, octets=octets, centred=centred),
    )


@cache
def elementwise(operation: str) -> Kernel:
    """An operation on whole buffers: add, mul or an activation."""
    return Kernel(
        ("elementwise", operation),
        operation,
        convert.ELEMENTWISE_FIELDS,
        lambda isa, width: convert.emit_elementwise(isa, width, operation),
    )


@cache
def embedding(*tables: embed.Stored) -> Kernel:
    """Sum of embedding rows from several tables."""
    return Kernel(
        ("embedding", *tables),
        "embed",
        embed.fields(tables),
        lambda isa, width: embed.emit(isa, width, tables),
    )


@cache
def peak_kernel(unit: peak.Unit) -> Kernel:
    """Products on registers alone."""
    return Kernel(
        ("peak", unit),
        "peak",
        peak.FIELDS,
        lambda isa, width: peak.emit(isa, width, unit),
        lambda words, longest: 64 * (peak.CHAINS + 2),
    )


_ATTENTIONS = {
    "attention": attention,
    "attention_i8": attention_i8,
    "attention_amx": attention_amx,
}


@cache
def attention_by_distance(kind: str) -> Kernel:
    """One of the attention kernels with a bias, or a window, by distance."""
    module = _ATTENTIONS[kind]
    return Kernel(
        ("attention_by_distance", kind),
        f"{kind} by distance",
        (*module.FIELDS, *distances.FIELDS),
        lambda isa, width: module.emit(isa, width, by_distance=True),
        _OTHERS[kind].scratch,
    )


@cache
def attention_by_position(*, of_queries: bool, of_keys: bool) -> Kernel:
    """Attention in fp32 with products of queries, of keys, or both with relative positions."""
    kinds = relative.Kinds(of_queries, of_keys)
    return Kernel(
        ("attention_by_position", of_queries, of_keys),
        "attention by position",
        (*attention.FIELDS, *relative.FIELDS, *distances.FIELDS),
        lambda isa, width: attention.emit(isa, width, positions=kinds),
        lambda words, longest: attention.scratch_bytes(longest) + relative.scratch_bytes(longest),
    )


_OTHERS = {
    kernel.kind: kernel
    for kernel in (
        Kernel(
            ("other", "attention"),
            "attention",
            attention.FIELDS,
            attention.emit,
            lambda words, longest: attention.scratch_bytes(longest),
        ),
        Kernel(
            ("other", "attention_i8"),
            "attention_i8",
            attention_i8.FIELDS,
            attention_i8.emit,
            lambda words, longest: attention_i8.scratch_bytes(longest, int(words["head_size"])),
        ),
        Kernel(
            ("other", "attention_amx"),
            "attention_amx",
            attention_amx.FIELDS,
            attention_amx.emit,
            lambda words, longest: attention_amx.scratch_bytes(longest, int(words["head_size"])),
        ),
        Kernel(("other", "quantize"), "quantize", convert.QUANTIZE_FIELDS, convert.emit_quantize),
        Kernel(
            ("other", "interleave"), "interleave", blocks.INTERLEAVE_FIELDS, blocks.emit_interleave
        ),
        Kernel(("other", "shorten"), "shorten", convert.SHORTEN_FIELDS, convert.emit_shorten),
        Kernel(("other", "pair"), "pair", blocks.INTERLEAVE_FIELDS, convert.emit_pair),
        Kernel(("other", "expand"), "expand", convert.EXPAND_FIELDS, convert.emit_expand),
        Kernel(("other", "copy"), "copy", convert.COPY_FIELDS, convert.emit_copy),
        Kernel(("other", "mean"), "mean", transfer.POOL_FIELDS, transfer.emit_mean),
        Kernel(("other", "norm_sums"), "norm_sums", norm.SUMS_FIELDS, norm.emit_sums),
        Kernel(("other", "rms_norm_sums"), "rms_norm_sums", norm.SUMS_FIELDS, norm.emit_rms_sums),
        Kernel(("other", "unit"), "unit", unit_length.FIELDS, unit_length.emit),
        Kernel(("other", "rotate"), "rotate", rotate.FIELDS, rotate.emit),
        Kernel(("other", "pick"), "pick", transfer.POOL_FIELDS, transfer.emit_pick),
        Kernel(("other", "unpack"), "unpack", transfer.UNPACK_FIELDS, transfer.emit_unpack),
    )
}


def other(kind: str) -> Kernel:
    """A kernel without options: attention, quantize, interleave, expand, ..."""
    return _OTHERS[kind]


def named(spec: Sequence[Any]) -> Kernel:
    """The kernel with this `spec`.

    Raises:
        KeyError, TypeError, ValueError: if there is none.
    """
    family, *options = spec
    if family == "linear":
        kind, epilogue = options
        return linear(str(kind), Epilogue(**epilogue))
    if family in ("norm", "rms_norm"):
        floats, octets = map(bool, options)
        return norm_kernel(floats=floats, octets=octets, centred=family == "norm")
    if family == "attention_by_position":
        of_queries, of_keys = map(bool, options)
        return attention_by_position(of_queries=of_queries, of_keys=of_keys)
    if family == "embedding":
        return embedding(*options)
    (option,) = options
    if family == "elementwise":
        return elementwise(str(option))
    if family == "attention_by_distance":
        return attention_by_distance(str(option))
    return other(str(option))
