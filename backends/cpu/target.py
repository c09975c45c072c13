"""The `cpu` target."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from sparsefx.backends.cpu.codegen.engine import shared_engine
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.lowering.asked import check_format
from sparsefx.backends.cpu.lowering.lowering import Lowered, lower_program
from sparsefx.backends.cpu.lowering.walk import LoweringOptions
from sparsefx.backends.cpu.machine.isa import Isa, IsaName, best_isa, isa, obstacle, short_isa
from sparsefx.backends.cpu.plan.weights import FORMATS
from sparsefx.backends.cpu.runtime.pool import shared_pool
from sparsefx.backends.cpu.runtime.runtime import Runtime
from sparsefx.errors import TargetError, did_you_mean
from sparsefx.program import Program
from sparsefx.target import Target, Unsupported, state_refused

__all__ = ["CpuTarget"]

logger = logging.getLogger(__name__)

_MOST_THREADS = 1024
_SHORTS: dict[str, IsaName] = {"fp16": "avx512_fp16", "bf16": "avx512_bf16"}
"""Floats of 16 bits, the more exact ones first."""

_FLOATS = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class CpuTarget(Target):
    """Lowers to machine code for sparse weights, through LLVM.

    Attributes:
        isa: "native", or an instruction set of this machine: avx2, avx512, avx512_vnni, amx, neon,
            neon_dotprod, neon_i8mm; with _emulated after amx, neon_dotprod and neon_i8mm, their
            kernels run on a slow model of what x86-64 may lack, for tests.
        threads: Threads per call; 0 takes every core of this process.
        attention: "auto" multiplies in int8 where query, key and value come from int8 linears;
            "fp32" never does.
        precision: Of fp32 linears: "fp32"; with "bf16" (AVX512_BF16) or "fp16" (AVX512-FP16) they
            also choose among formats that multiply floats of 16 bits.
        rates: "measured" chooses formats by what this machine takes (a second, once); "built-in" by
            figures of one machine, so that the choice is the same everywhere.
        format: "" chooses the cheapest for every layer; else quads, blocks, rows, dense_i8,
            dense_f32, dense_amx, masked_amx, rows_bf16, dense_bf16, dense_amx_bf16, rows_fp16,
            for every linear that can have it; an error if none can.
    """

    name: ClassVar[str] = "cpu"
    extra: ClassVar[str] = "cpu"
    isa: str = "native"
    threads: int = 0
    attention: Literal["auto", "fp32"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    format: str = ""
    rates: Literal["measured", "built-in"] = "measured"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("", *FORMATS):
            hint = did_you_mean(self.format, FORMATS)
            raise self.refuse("format", "there is no such format", hint=hint)
        if not 0 <= self.threads <= _MOST_THREADS:
            raise self.refuse("threads", f"expected 0 to {_MOST_THREADS}")

    def check_machine(self) -> None:
        """Refuse an instruction set, or a precision, that is not known or not of this machine."""
        super().check_machine()
        if self.precision == "fp32":
            isa(self.isa)
        else:
            short_isa(self.isa, self.precision)

    def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """Nodes that no kernel computes; they and what needs them run in PyTorch.

        A Program without an input [batch, sequence], with tensors in bfloat16, or with buffers that
        calls change, cannot be lowered at all.
        """
        if refused := _refusal(program):
            return (Unsupported(refused.where, f"{refused.why}; {refused.hint}"),)
        return self._lower(program, pack=False).unsupported()

    def compile(self, program: Program) -> CpuCompiled:
        """Run :meth:`pipeline` on a copy of `program` and lower it, in one walk.

        What no kernel computes runs in PyTorch.

        Raises:
            TargetError: No input is [batch, sequence], a tensor is in bfloat16, calls change a
                buffer, or no linear can have the format.
        """
        return self._compiled(self.pipeline().run(program))

    def lower(self, program: Program) -> CpuCompiled:
        """Lower a copy of a Program, in eval mode.

        Raises:
            TargetError: No input is [batch, sequence], a tensor is in bfloat16, calls change a
                buffer, or no linear can have the format.
        """
        return self._compiled(program.copy())

    def _compiled(self, own: Program) -> CpuCompiled:
        """Lower a Program that nobody else holds."""
        if refused := _refusal(own):
            raise refused
        own.eval()
        lowered = self._lower(own)
        for reason in lowered.unsupported():
            logger.info("%s: %s", self, reason)
        told = check_format(self.format, self._isa(own), lowered.layers)
        if told:
            logger.warning("%s: %s", self, told)
        engine = shared_engine(self._isa(own))
        pool = shared_pool(engine, self._threads())
        return CpuCompiled(
            own,
            lowered,
            Runtime(lowered.plan, engine, pool),
            measured=self._measured(engine.isa),
            note="; ".join(filter(None, (self._note(engine.isa), told))),
        )

    def _lower(self, program: Program, *, pack: bool = True) -> Lowered:
        chosen = self._isa(program)
        options = LoweringOptions(chosen, self.format, self.attention, self._measured(chosen), pack)
        return lower_program(program, options)

    def _measured(self, chosen: Isa) -> bool:
        """Whether formats are timed; on emulated tiles times would mean nothing."""
        return self.rates == "measured" and not chosen.is_model

    def _note(self, chosen: Isa) -> str:
        """Why the native instruction set is not a wider one, or what else linears could have."""
        if self.isa != "native" or chosen.has_tiles or self.precision == "fp16":
            return ""
        if self.precision == "bf16":
            return f"not amx_bf16: {obstacle('amx_bf16')}"
        if chosen.has_pack_order:
            return f"not amx: {obstacle('amx')}"
        others = [short for short, name in _SHORTS.items() if not obstacle(name)]
        return f"precision={others[0]!r} offers more formats" if others else ""

    def _isa(self, program: Program) -> Isa:
        """The instruction set; one without dot products where nothing is quantized."""
        if self.precision != "fp32":
            return short_isa(self.isa, self.precision)
        quantize = torch.ops.sparsefx.quantize.default
        if program.graph.find_nodes(op="call_function", target=quantize):
            return replace(isa(self.isa), short="")
        if self.isa == "native":
            return best_isa(integers=False)
        chosen = isa(self.isa)
        return chosen.without_dots

    def _threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def _refusal(program: Program) -> TargetError | None:
    """Why a Program cannot be lowered at all; None when it can, in part at least."""
    state = state_refused(program, CpuTarget.name)
    return state or _without_tokens(program) or _without_numpy(program)


def _without_tokens(program: Program) -> TargetError | None:
    """What is wrong with the inputs where none is [batch, sequence]: plans pack tokens."""
    inputs = program.signature.inputs
    if any(len(spec.dims) == 2 for spec in inputs):
        return None
    shapes = ", ".join(f"{spec.name} [{', '.join(map(str, spec.dims))}]" for spec in inputs)
    return TargetError(
        f"cpu packs tokens, but no input is [batch, sequence]: {shapes}",
        who=CpuTarget.name,
        where="inputs",
        hint="use the target reference or onnxruntime",
    )


def _without_numpy(program: Program) -> TargetError | None:
    """The first tensor of a type that NumPy, which packs weights, lacks: bfloat16, float8."""
    for name, tensor in program.named_tensors().items():
        if tensor.dtype.is_floating_point and tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            return TargetError(
                f"this tensor is in {kind}; weights are packed from float32, float16 or float64",
                who=CpuTarget.name,
                where=name,
                hint="call model.float() before the capture",
            )
    return None
