"""quantize-probabilities: attention's second product becomes one of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from sparsefx.backends.accelerator.workload.units import op_name
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.quantized import quantized_operand

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["QuantizeProbabilities"]

_NAME = "probabilities"
_SOFTMAXES = {"aten.softmax", "aten._softmax", "aten._safe_softmax"}
_PASSED_ON = {"aten.dropout", "aten.to", "aten.clone", "aten.contiguous"}


@dataclass(frozen=True)
class QuantizeProbabilities(Pass):
    """Quantizes attention probabilities where they multiply quantized values.

    Probabilities lie in 0..1, so that no observer is needed: scale 1/255 and zero point 0, uint8.
    An int8 array can then compute the product. Each probability moves by 1/510 at most.

    Skips products whose other operand is float, and says which option makes it integer.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> softmax = torch.nn.Softmax(dim=-1)
    >>> program = small_program(softmax, input=torch.ones(2, 4))
    >>> quiet = Pipeline.parse("quantize-probabilities{on_no_match='ignore'}")
    >>> quiet.run(program).history[-1].applied
    0
    """

    name: ClassVar[str] = "quantize-probabilities"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Put a quantize and a dequantize node before each such product."""
        applied, skipped = 0, []
        for node in list(program.graph.nodes):
            if op_name(node) not in ("aten.matmul", "aten.bmm"):
                continue
            shares, values = node.args[:2]
            if not isinstance(shares, fx.Node) or not _is_softmax(shares):
                continue
            if quantized_operand(values) is None:
                reason = "the values are float; quantize-prepare{requantize='all'} makes them uint8"
                skipped.append(Skip(f"%{node.name}", reason))
                continue
            _quantize(node, shares, ctx)
            applied += 1
        return PassReport(applied, tuple(skipped))


def _is_softmax(node: fx.Node) -> bool:
    while op_name(node) in _PASSED_ON:
        before = node.args[0]
        assert isinstance(before, fx.Node)
        node = before
    return op_name(node) in _SOFTMAXES


def _quantize(product: fx.Node, shares: fx.Node, ctx: PassContext) -> None:
    rewriter, ops = ctx.rewriter, torch.ops.sparsefx
    with rewriter.before(product):
        name = f"{_NAME}_{product.name}"
        scale = rewriter.add_buffer(f"{name}_scale", torch.tensor(1 / 255))
        zero = rewriter.add_buffer(f"{name}_zero_point", torch.tensor(0, dtype=torch.int32))
        integers = rewriter.call(ops.quantize.default, shares, scale, zero, 0, 255)
        floats = rewriter.call(ops.dequantize.default, integers, scale, zero)
        rewriter.replace_input(product, shares, floats)
