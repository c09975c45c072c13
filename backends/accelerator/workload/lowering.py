"""From a Program to a workload: one operation for each node that takes time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from sparsefx.backends.accelerator.engines.base import BoolArray
from sparsefx.backends.accelerator.workload.operations import (
    FLOAT_PRODUCT,
    HostOp,
    MatmulOp,
    Op,
    VectorOp,
    Workload,
)
from sparsefx.backends.accelerator.workload.units import (
    Unit,
    op_name,
    reads_table,
    units_of,
    vector_kind,
)
from sparsefx.backends.formats.encoding import Int8Array
from sparsefx.errors import TargetError
from sparsefx.passes.analyses.dataflow import weight_of
from sparsefx.passes.analyses.quantized import QuantizedProducts
from sparsefx.program import Program

__all__ = ["Lowering", "float_linears", "integer_weight", "lower_program", "weight_digest"]


def weight_digest(weight: Int8Array) -> str:
    """Hash of a layer's integers: what was timed and what was computed must agree in it."""
    text = f"{weight.shape}".encode()
    return hashlib.sha256(text + np.ascontiguousarray(weight).tobytes()).hexdigest()[:16]


def integer_weight(program: Program, node: fx.Node) -> str | None:
    """Name of the int8 tensor behind a linear's weight; None when it is not quantized."""
    source = node.args[1]
    if not isinstance(source, fx.Node) or op_name(source) != "sparsefx.dequantize":
        return None
    stored = source.args[0]
    if not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return None
    name = str(stored.target)
    return name if program.tensor(name).dtype == torch.int8 else None


def float_linears(program: Program) -> dict[str, str]:
    """Names of linears whose weights an int8 machine cannot take, each with why and what to do."""
    units = units_of(program.graph)
    linears = [n for n in units if units[n] == "matrix" and op_name(n) == "aten.linear"]
    floats = [node for node in linears if integer_weight(program, node) is None]
    if len(floats) == len(linears):
        hint = "run quantize-prepare, calibrate and quantize-convert first"
        return {node.name: f"its weight is float; {hint}" for node in floats}
    return {node.name: f"its weight is float; {_why_float(node)}" for node in floats}


def _why_float(node: fx.Node) -> str:
    """Why quantize-convert left the weight of a linear alone, and what to do about it."""
    weight = node.args[1]
    users = weight.users if isinstance(weight, fx.Node) else ()
    tables = [user for user in users if reads_table(user) and user.args[0] is weight]
    if not tables:
        return "quantize-convert left it out: see what quantize-prepare skips"
    return f"%{tables[0].name} reads it too, so quantize-convert left it out: untie them"


@dataclass(frozen=True)
class Lowering:
    """Sizes for which a Program is lowered, and what is known of its activations.

    Attributes:
        sizes: Dynamic dimensions by name, such as `batch` and `sequence`.
        integers: Whether the machine computes in int8, so that float weights are refused.
        activations: Non-zeros of the inputs of linears, `[rows, k]`, by node name.
    """

    sizes: Mapping[str, int]
    integers: bool
    activations: Mapping[str, BoolArray]


def lower_program(program: Program, how: Lowering) -> Workload:
    """Make the workload of a Program.

    Raises:
        TargetError: When the machine needs int8 and linears are float; all of them are listed.
    """
    program.infer_shapes()
    floats = float_linears(program) if how.integers else {}
    if floats:
        listed = "".join(f"\n  - %{name}: {reason}" for name, reason in floats.items())
        raise TargetError(
            f"{len(floats)} linears have float weights, int8 is needed:{listed}",
            who="accelerator",
            hint="or choose an architecture that computes in fp16",
        )
    return _Lowerer(program, how).run()


def _float_product(
    name: str, sizes: tuple[int, int, int], inputs: tuple[str, ...], copies: int
) -> VectorOp:
    """A product that an integer array cannot do, because an operand is float."""
    m, n, k = sizes
    elements, reads = copies * m * n, copies * k * (m + n)
    return VectorOp(name, FLOAT_PRODUCT, elements, inputs, copies, repeats=k, reads=reads)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class _Lowerer:
    def __init__(self, program: Program, how: Lowering) -> None:
        self.program = program
        self.how = how
        self.source: dict[fx.Node, tuple[str, ...]] = {}
        self.weights: dict[str, Int8Array] = {}
        self.quantized = {site.node for site in program.facts(QuantizedProducts)}

    def run(self) -> Workload:
        units = units_of(self.program.graph)
        ops: list[Op] = []
        results: tuple[str, ...] = ()
        for node in self.program.graph.nodes:
            inputs = self.inputs(node)
            if node.op == "placeholder":
                self.source[node] = ("",) if _is_float(node) else ()
                continue
            if node.op == "output":
                results = inputs
                continue
            unit: Unit = units.get(node, "free")
            if unit == "free":
                size = isinstance(node.meta.get("val"), int | torch.SymInt)
                self.source[node] = () if size else inputs  # no data flows through a size
                continue
            op = self.op(node, unit, inputs)
            ops.append(op)
            self.source[node] = (op.name,)
        spec = self.program.signature.tokens
        dims = spec.dims if spec else ("batch", "sequence")
        batch, tokens = (d if isinstance(d, int) else self.how.sizes.get(d, 1) for d in dims)
        name = f"{self.program.config.get('model_type', 'program')}, {batch} x {tokens} tokens"
        return Workload(name, tuple(ops), batch, tokens, results, self.program.fingerprint())

    def inputs(self, node: fx.Node) -> tuple[str, ...]:
        names = [n for before in node.all_input_nodes for n in self.source.get(before, ())]
        return tuple(dict.fromkeys(names))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        return tuple(self.program.shapes.size(dim, self.how.sizes) for dim in value.shape)

    def op(self, node: fx.Node, unit: Unit, inputs: tuple[str, ...]) -> Op:
        shape = self.shape(node)
        elements = math.prod(shape)
        if unit == "matrix":
            return self.matmul(node, inputs)
        copies = math.prod(shape[:-2]) if len(shape) > 3 else 1
        kind = vector_kind(node)
        if unit == "host":
            reason = f"the machine has no {op_name(node)}"
            return HostOp(node.name, op_name(node), elements, inputs, reason, copies)
        rowwise = kind in ("softmax", "layer-norm")
        fetched = elements if reads_table(node) else 0
        return VectorOp(node.name, kind, elements, inputs, copies, rowwise, fetched=fetched)

    def matmul(self, node: fx.Node, inputs: tuple[str, ...]) -> MatmulOp | VectorOp:
        out = self.shape(node)
        left = node.args[0]
        if not isinstance(left, fx.Node):
            raise TargetError(f"{op_name(node)} of a constant", who="accelerator", where=node.name)
        k = self.shape(left)[-1]
        if not math.prod(out) * k:
            raise TargetError(
                f"the product of {list(self.shape(left))} into {list(out)} is empty",
                who="accelerator",
                where=f"%{node.name}",
                hint="take the layer out, or give it rows",
            )
        if op_name(node) != "aten.linear":
            copies = math.prod(out[:-2])
            if self.how.integers and node not in self.quantized:
                return _float_product(node.name, (out[-2], out[-1], k), inputs, copies)
            return MatmulOp(node.name, out[-2], out[-1], k, inputs, copies, stationary=False)
        rows = math.prod(out[:-1])
        weight, mask = self.weight(node)
        module = (weight_of(node) or "").rpartition(".")[0]
        product = MatmulOp(node.name, rows, out[-1], k, inputs, weight=weight, mask=mask)
        return replace(product, activation=self.how.activations.get(node.name), module=module)

    def weight(self, node: fx.Node) -> tuple[Int8Array | None, BoolArray | None]:
        name = integer_weight(self.program, node)
        if name is not None:
            if name not in self.weights:
                self.weights[name] = self.program.tensor(name).detach().numpy()
            return self.weights[name], None
        source = node.args[1]
        if isinstance(source, fx.Node) and source.op == "get_attr":
            tensor = self.program.tensor(str(source.target)).detach()
            return None, (tensor != 0).numpy()
        return None, None
