"""Functional execution: integers from the compressed streams, the rest as the graph says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from sparsefx.backends.accelerator.engines.base import BoolArray
from sparsefx.backends.accelerator.workload.lowering import integer_weight, weight_digest
from sparsefx.backends.accelerator.workload.units import op_name
from sparsefx.backends.formats.dense import Dense
from sparsefx.backends.formats.encoding import Encoded, Int8Array, SparseFormat
from sparsefx.passes.analyses.quantized import QuantizedProduct, QuantizedProducts
from sparsefx.program import Program

__all__ = ["IntegerProduct", "StreamExecutor", "accumulate", "multiply"]

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class IntegerProduct:
    """What the array computed for one linear, or product of activations, in one run.

    Attributes:
        accumulators: int32 `[rows, n]`, `sum over k of (q - zero point) * w`; for a product of
            activations `[..., rows, columns]`.
        digest: Hash of the weights that were decoded from the stream; "" without weights.
        active: Share of activations (the left ones) that are not at the zero point.
    """

    accumulators: Int32Array = field(repr=False)
    digest: str
    active: float


def accumulate(q: Tensor, zero_point: int, weight: Int8Array) -> Int32Array:
    """Multiply integers exactly: `(q - zero_point) @ weight.T` in int32.

    The product is taken of `q - 128`, which fits int8, and put right afterwards:

        sum (q - z) w = sum (q - 128) w + (128 - z) sum w

    Args:
        q: uint8 `[rows, k]`.
        zero_point: The integer that stands for 0.0.
        weight: int8 `[n, k]`.

    Returns:
        int32 `[rows, n]`.
    """
    signed = (q.to(torch.int16) - 128).to(torch.int8)
    # A copy: where k is 1, what counts as contiguous may have strides that torch misreads.
    product = torch._int_mm(signed, torch.from_numpy(weight.T.copy()))
    sums = torch.from_numpy(weight.sum(axis=1, dtype=np.int32))
    total: Int32Array = (product + (128 - zero_point) * sums).numpy()
    return total


def multiply(left: Tensor, right: Tensor, zero_points: tuple[int, int]) -> Tensor:
    """Multiply two quantized activations exactly: `(left - z_left) @ (right - z_right)`.

    Args:
        left: uint8 `[..., rows, k]`.
        right: uint8 `[..., k, columns]`.
        zero_points: The integers that stand for 0.0.

    Returns:
        int32 `[..., rows, columns]`.
    """
    # float32 holds integers below 2^24 exactly, float64 below 2^53.
    small = left.shape[-1] * 255 * 255 < 2**24
    kind = torch.float32 if small else torch.float64
    shifted = [x.to(kind) - zero for x, zero in zip((left, right), zero_points, strict=True)]
    return (shifted[0] @ shifted[1]).to(torch.int32)


class StreamExecutor(fx.Interpreter):
    """Runs a Program with the linears computed from their encoded weights.

    A linear whose input and weight are quantized is computed as the array does:

        accumulators = sum over k of (q - zero_point) * w                   int32, exact
        y = float32(accumulators) * (scale_input * scale_weight) + bias     in float32

    and a following quantize node turns y into integers again: the arithmetic of the reference
    target's `integer` way, so the two are equal element for element. A product of two activations
    is computed so when both are quantized, with the right one in the place of the weights.
    Everything else, a product with a float operand too, runs in float32 as in the Program.

    Args:
        program: A quantized Program, in evaluation mode.
        form: The format that the weights are stored in.
    """

    def __init__(self, program: Program, form: SparseFormat) -> None:
        super().__init__(program.module)
        self.program = program
        self.form = form
        self.streams: dict[str, Encoded] = {}
        self.products: dict[str, IntegerProduct] = {}
        self.attention: dict[str, IntegerProduct] = {}
        self.active: dict[str, BoolArray] = {}
        self._integers: dict[fx.Node, Any] = {}
        self._decoded: dict[str, tuple[Int8Array, str]] = {}
        self._attention = {site.node: site for site in program.facts(QuantizedProducts)}
        self._wanted = {node for site in self._attention.values() for node in _read_by(site)}
        self._kept: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            if op_name(node) == "aten.linear":
                self._encode(node)

    def _encode(self, node: fx.Node) -> None:
        name = integer_weight(self.program, node)
        if name is None or name in self.streams:
            return
        weight = self.program.tensor(name).detach().numpy()
        form = self.form if self.form.compresses(weight != 0) else Dense()
        self.streams[name] = form.encode(weight)
        self._decoded[name] = _read(form, self.streams[name])

    def digest(self, node: fx.Node) -> str:
        """Hash of the weights that a linear's stream decodes to."""
        name = integer_weight(self.program, node)
        return self._decoded[name][1] if name else ""

    def execute(self, **batch: Tensor) -> dict[str, Tensor]:
        """Run one batch; inputs and outputs as those of the Program."""
        self.program.signature.check(batch)
        self._integers.clear()
        self._kept.clear()
        ordered = [batch[spec.name] for spec in self.program.signature.inputs]
        with torch.no_grad():
            outputs: dict[str, Tensor] = self.run(*ordered)
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, a quantized linear on the array."""
        name = op_name(n)
        if name == "sparsefx.dequantize":
            if all(self._on_array(user) and user.args[1] is n for user in n.users):
                return None  # weights of the array: they are never turned into floats
            self._integers[n] = self.fetch_args_kwargs_from_env(n)[0][:3]
        if name == "aten.linear" and self._on_array(n):
            return self._linear(n)
        if n in self._attention:
            return self._product(self._attention[n])
        value = super().run_node(n)
        if n in self._wanted:
            self._kept[n] = value
        return value

    def _product(self, site: QuantizedProduct) -> Tensor:
        tensor, left, right = self.program.tensor, site.left, site.right
        operands = left.moved(self._kept), right.moved(self._kept)
        zeros = int(tensor(left.zero_point)), int(tensor(right.zero_point))
        accumulators = multiply(*operands, zeros)
        active = float((operands[0] != zeros[0]).float().mean())
        self.attention[site.node.name] = IntegerProduct(accumulators.numpy(), "", active)
        return accumulators.float() * (tensor(left.scale) * tensor(right.scale))

    def _on_array(self, node: fx.Node) -> bool:
        """Whether a node is a linear with quantized weight and input."""
        if op_name(node) != "aten.linear" or integer_weight(self.program, node) is None:
            return False
        source = node.args[0]
        return isinstance(source, fx.Node) and op_name(source) == "sparsefx.dequantize"

    def _linear(self, node: fx.Node) -> Tensor:
        source, weight_node = node.args[0], node.args[1]
        name = integer_weight(self.program, node)
        if name is None or not isinstance(source, fx.Node) or not isinstance(weight_node, fx.Node):
            raise AssertionError(f"{node.name} was taken for a quantized linear")
        weight, digest = self._decoded[name]
        q, scale, zero_point = self._integers[source]
        weight_scale = self.program.tensor(str(weight_node.args[1].target))  # type: ignore[union-attr]  # a get_attr
        bias = self.fetch_args_kwargs_from_env(node)[0][2:]
        rows = q.reshape(-1, q.shape[-1])
        zero = int(zero_point)
        accumulators = accumulate(rows, zero, weight)
        active = (rows != zero).numpy()
        self.active[node.name] = active
        self.products[node.name] = IntegerProduct(accumulators, digest, float(active.mean()))
        y = torch.from_numpy(accumulators).float() * (scale * weight_scale)
        if bias and bias[0] is not None:
            y = y + bias[0]
        result: Tensor = y.reshape(*q.shape[:-1], -1)
        return result


def _read_by(site: QuantizedProduct) -> list[fx.Node]:
    """The nodes whose values a product of integers needs: the integers, and sizes for moves."""
    found = []
    for operand in (site.left, site.right):
        sizes = {n for move in operand.moves for n in move.all_input_nodes[1:]}
        found += [operand.integers, *sizes]
    return found


def _read(form: SparseFormat, encoded: Encoded) -> tuple[Int8Array, str]:
    weight = form.decode(encoded)
    return weight, weight_digest(weight)
