"""Small cases for the cpu target: one linear as a plan, and Programs quantized by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx import Program
from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.panel import paired_rows
from sparsefx.backends.cpu.machine.isa import ISAS, NATIVE, IsaName, obstacle
from sparsefx.backends.cpu.measure.amx_check import (
    embed,
    linear_input,
    linear_words,
    pair,
    run_steps,
)
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.plan.weights import SHORT, Format, pack
from sparsefx.backends.cpu.runtime.pool import Pool
from sparsefx.rewrite import Rewriter

RUNNABLE: list[IsaName] = [name for name in NATIVE if not obstacle(name)]
"""Instruction sets that lower whole models and that this machine has."""

EMULATED: list[IsaName] = [] if obstacle("amx_emulated") else ["amx_emulated"]
"""AMX on a model of its tiles, where the machine has all else that it needs."""

ARM_MODELS: list[IsaName] = [
    name for name in ("neon_dotprod_emulated", "neon_i8mm_emulated") if not obstacle(name)
]
"""Dot products of Arm on a model of them in ordinary code, on x86-64."""

_QUANTIZE = torch.ops.sparsefx.quantize.default
_DEQUANTIZE = torch.ops.sparsefx.dequantize.default


@cache
def engine(name: IsaName) -> Engine:
    """The engine of one instruction set, without a cache on disk."""
    return Engine(ISAS[name], None)


@cache
def pool(name: IsaName, threads: int) -> Pool:
    """Threads that the cases share."""
    return Pool(engine(name), threads)


@dataclass(frozen=True)
class LinearCase:
    """y = (x - zero_point) w^T for uint8 x and int8 w, or y = x w^T in fp32."""

    isa: IsaName
    format: Format
    x: NDArray[Any]
    w: NDArray[Any]
    zero_point: int = 7
    threads: int = 2

    def run(self) -> NDArray[np.float32]:
        """Run it through the kernels: the sums as fp32 [tokens, rows]."""
        integer = self.w.dtype == np.int8
        name, rows = self.isa, len(self.w)
        target = Buffer("y", rows, 4)
        if integer:
            steps, source = linear_input(self.x, self.zero_point, self.format, ISAS[name])
        else:
            source = Buffer("x", self.x.shape[1], 4)
            steps = [embed(self.x, source)]
        if integer and self.format in ("rows", "dense_f32"):
            codes, source = source, Buffer("e", source.rows, 4)
            words: dict[str, Word] = {"rows": codes.rows, "input": codes, "output": source}
            steps.append(Step(catalog.other("expand"), words | {"scale": 1.0}, "e"))
        zero_point, signed = self.zero_point if integer else 0, ISAS[name].signed_codes
        if self.format == "dense_amx_bf16":
            whole, source = source, Buffer("m", paired_rows(source.rows), 2)
            steps.append(pair(whole, source))
        elif self.format in SHORT:
            whole, source = source, Buffer("s", source.rows, 2)
            words = {"rows": whole.rows, "input": whole, "output": source}
            steps.append(Step(catalog.other("shorten"), words, "s"))
        packed = pack(self.w, self.format, zero_point, signed_codes=signed)
        words = linear_words(self.w, packed, source) | {"output": target}
        steps.append(Step(catalog.linear(self.format, Epilogue(integer)), words, "y"))
        mask = np.ones((1, len(self.x)), np.bool_)
        found = run_steps(steps, [target], mask, engine(name), pool(name, self.threads))["y"]
        return found.reshape(len(self.x), rows)

    def expected(self) -> NDArray[np.float64]:
        """The same from numpy, in double precision."""
        shift = self.zero_point if self.w.dtype == np.int8 else 0
        result: NDArray[np.float64] = (self.x.astype(np.float64) - shift) @ self.w.T.astype(float)
        return result


def quantized(program: Program, batch: dict[str, Tensor]) -> Program:
    """A copy with every linear int8: weights per row, inputs per tensor from their range."""
    program = program.copy().eval()
    linears = [n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    sources = list(dict.fromkeys(n.args[0] for n in linears))
    ranges = _ranges(program, sources, batch)
    rewriter = Rewriter(program, "quantized")
    replaced = {}
    for number, (source, (low, high)) in enumerate(zip(sources, ranges, strict=True)):
        scale = max((high - low) / 255, 1e-8)
        parameters = [
            rewriter.add_buffer(f"input{number}.scale", torch.tensor(scale)),
            rewriter.add_buffer(
                f"input{number}.zero", torch.tensor(round(-low / scale), dtype=torch.int32)
            ),
        ]
        with rewriter.after(source):
            q = rewriter.call(_QUANTIZE, source, *parameters, 0, 255)
            replaced[source] = rewriter.call(_DEQUANTIZE, q, *parameters)
    for node in linears:
        name = str(node.args[1].target)
        weight = program.tensor(name).detach()
        if weight.dtype != torch.int8:
            scale_ = (weight.abs().amax(1) / 127).clamp(min=1e-12)
            rewriter.add_buffer(f"quantized.{name}.scale", scale_)
            zeros = torch.zeros(len(scale_), dtype=torch.int32)
            rewriter.add_buffer(f"quantized.{name}.zero", zeros)
            rewriter.set_tensor(name, (weight / scale_[:, None]).round().to(torch.int8))
        parameters = [rewriter.get(f"quantized.{name}.{part}") for part in ("scale", "zero")]
        with rewriter.before(node):
            whole = rewriter.call(_DEQUANTIZE, rewriter.get(name), *parameters, 0)
        rewriter.set_args(node, replaced[node.args[0]], whole, *node.args[2:])
    rewriter.finish()
    return program


def _ranges(
    program: Program, nodes: list[fx.Node], batch: dict[str, Tensor]
) -> list[tuple[float, float]]:
    """Smallest (at most 0) and largest (at least 0) value of each node on a batch."""
    found: dict[fx.Node, tuple[float, float]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                found[n] = (min(0.0, float(value.min())), max(0.0, float(value.max())))
            return value

    with torch.no_grad():
        Watch(program.module).run(*(batch[name] for name in program.signature.input_names))
    return [found[n] for n in nodes]


def sparse_(program: Program, density: float, seed: int = 0) -> Program:
    """Set random weights of the linears to zero, in place."""
    generator = torch.Generator().manual_seed(seed)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            weight = program.tensor(str(node.args[1].target)).detach()
            weight.mul_((torch.rand(weight.shape, generator=generator) < density) / density**0.5)
    return program


def padded_batch(program: Program, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids with padding of random length at the end of each sequence."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {}
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    for name in program.signature.input_names:
        if name == "attention_mask":
            batch[name] = (torch.arange(length)[None] < lengths[:, None]).long()
        elif name == "token_type_ids":
            batch[name] = torch.randint(0, 2, (rows, length), generator=generator)
        else:
            batch[name] = torch.randint(3, 99, (rows, length), generator=generator)
    return batch
