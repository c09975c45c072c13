"""The pass quantize-convert: integer weights and explicit quantize and dequantize nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, fx

from sparsefx.errors import PassError
from sparsefx.graph.fake_quantization import affine_parameters, symmetric_scale
from sparsefx.graph.finite import is_finite
from sparsefx.graph.ops import MODE, along, storage_dtype
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.quantize.prepare import STEP, QuantizePrepare
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["QuantizeConvert", "quantize_weight"]

_ops = torch.ops.sparsefx


@dataclass(frozen=True)
class QuantizeConvert(Pass):
    """Turns fake quantizers into integer weights and quantize and dequantize nodes.

    The weight parameter is replaced by an int8 buffer *of the same name*; scale and zero point
    stand beside it. One linear whose output is quantized again then reads:

        %x_q = sparsefx.quantize(%x, %input_scale, %input_zero_point, 0, 255)
        %x_dq = sparsefx.dequantize(%x_q, %input_scale, %input_zero_point)
        %w_dq = sparsefx.dequantize(%weight, %weight_scale, %weight_zero_point)
        %y = aten.linear(%x_dq, %w_dq, %bias)
        %y_q = sparsefx.quantize(%y, %output_scale, %output_zero_point, 0, 255)
        %y_dq = sparsefx.dequantize(%y_q, %output_scale, %output_zero_point)

    The tensors of the module ``M`` that holds the weight:

        M.weight             int8    [out, in]   symmetric
        M.weight_scale       float32 [] or [out] (then every node of it ends with the axis, 0)
        M.weight_zero_point  int32   shaped as the scale, always 0
        M.bias               float32 [out]       not quantized here: int32 with the scale
                                                 input_scale * weight_scale is a target's matter
        M.input_scale, M.output_scale            float32 []; of the first linear that reads a value,
        M.input_zero_point, M.output_zero_point  int32 []    when several share it
                                                 (input_2_scale, ... when a linear is called again)

    Scales are those of quantize-prepare (see there), computed by the same functions, and the graph
    computes what the prepared Program computes in evaluation mode, operation for operation: on a
    CPU with the same number of threads the outputs are *equal*. A zero weight is the integer 0;
    that is checked, and how many small weights round to 0 is noted.

    Requires quant-prepared; establishes quantized; masks must be folded and distillation stripped
    before. Without training, let the observers see data first:
    :func:`sparsefx.passes.quantize.calibrate.calibrate`.

    Raises:
        PassError: When an observer has seen no data, or a range or weight holds NaN or infinity
            (all of them are listed), or the step ``begin`` was not reached.

    >>> import torch
    >>> from sparsefx import capture, Pipeline
    >>> from sparsefx.passes.quantize.calibrate import calibrate
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
    >>> batch = {"input": torch.randn(3, 4)}
    >>> program = Pipeline.parse("quantize-prepare").run(capture(model.eval(), batch))
    >>> calibrate(program, [batch])
    1
    >>> print(Pipeline.parse("quantize-convert").run(program).dump())
    program(input: float32[batch, 4]) {
      %_0_weight = tensor @0.weight
      %_0_weight_scale = tensor @0.weight_scale
      %_0_weight_zero_point = tensor @0.weight_zero_point
      %_0_input_scale = tensor @0.input_scale
      %_0_input_zero_point = tensor @0.input_zero_point
      %dequantize = sparsefx.dequantize(%_0_weight, %_0_weight_scale, %_0_weight_zero_point)
      %quantize = sparsefx.quantize(%input_1, %_0_input_scale, %_0_input_zero_point, 0, 255)
      %dequantize_1 = sparsefx.dequantize(%quantize, %_0_input_scale, %_0_input_zero_point)
      %linear = aten.linear(%dequantize_1, %dequantize)
      return {output: %linear}
    }
    properties: quantized
    """

    name: ClassVar[str] = "quantize-convert"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.QUANT_PREPARED})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.QUANT_PREPARED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.MASKED, Property.DISTILLING})

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Convert every fake quantizer."""
        weights = _calls(program, _ops.fake_quantize_weight.default)
        activations = _calls(program, _ops.fake_quantize.default)
        if problems := _problems(program, weights, activations):
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise PassError(
                f"{len(problems)} quantizers cannot be converted:{listed}",
                who=self.name,
                hint="train the prepared Program, or let its observers see data with "
                "sparsefx.passes.quantize.calibrate.calibrate(program, batches)",
            )
        for node in _calls(program, _ops.observe.default):
            ctx.rewriter.erase(node)
        lost = sum(_convert_weight(program, ctx.rewriter, node) for node in weights)
        for node in activations:
            _convert_activation(program, ctx.rewriter, node)
        if weights or activations:
            ctx.rewriter.remove_tensor(STEP)
        for node in list(program.graph.find_nodes(op="call_module", target=MODE)):
            if not node.users:
                ctx.rewriter.erase(node)
        program.active = tuple(p for p in program.active if not isinstance(p, QuantizePrepare))
        notes = (
            f"{len(weights)} weights are int8, {len(activations)} activations uint8",
            f"{lost} non-zero weights were smaller than half a step and are now 0",
        )
        return PassReport(len(weights), (), notes)


def _calls(program: Program, target: object) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="call_function", target=target))  # type: ignore[arg-type]  # any target


def _problems(program: Program, weights: list[fx.Node], activations: list[fx.Node]) -> list[str]:
    found = []
    for node in weights:
        source = node.args[0]
        if source.op != "get_attr":  # type: ignore[union-attr]  # a node by schema
            found.append(f"%{node.name}: its weight is computed by %{source}; fold it first")
        elif not is_finite(program.tensor(_target(source))):
            found.append(f"{_target(source)} holds NaN or infinity")
    for node in activations:
        if problem := _range_problem(program, node):
            found.append(problem)
    begins = {int(node.args[4]) for node in activations}  # type: ignore[arg-type]  # an int by schema
    step = int(program.tensor(STEP)) if begins else 0
    found.extend(
        f"fake quantization has not begun: step {step} of begin={begin}"
        for begin in sorted(begins)
        if step < begin
    )
    return found


def _range_problem(program: Program, node: fx.Node) -> str:
    name = _target(node.args[1])
    low = float(program.tensor(name))
    high = float(program.tensor(_target(node.args[2])))
    place = name.removesuffix("_minimum")
    if low == float("inf") and high == float("-inf"):
        return f"the observer of {place} has seen no data"
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        return f"the observer of {place} holds the range {low}..{high}"
    return ""


def _target(node: object) -> str:
    assert isinstance(node, fx.Node)
    return str(node.target)


def _convert_weight(program: Program, rewriter: Rewriter, node: fx.Node) -> int:
    """Replace one weight; return how many of its non-zero values became 0."""
    source, _, _, qmin, qmax, *rest = node.args
    axis = rest[0] if rest else None
    assert isinstance(source, fx.Node)
    assert isinstance(qmin, int)
    assert isinstance(qmax, int)
    assert axis is None or isinstance(axis, int)
    name = _target(source)
    weight = program.tensor(name).detach()
    integers, scale = quantize_weight(weight, qmin, qmax, axis)
    alive, kept = weight != 0, integers != 0
    if bool((kept & ~alive).any()):
        raise PassError("a zero weight became non-zero", who="quantize-convert", where=name)
    rewriter.set_tensor(name, integers)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    with rewriter.before(node):
        scale_node = rewriter.add_buffer(f"{name}_scale", scale)
        zero_node = rewriter.add_buffer(f"{name}_zero_point", zeros)
        arguments = (source, scale_node, zero_node, *(() if axis is None else (axis,)))
        rewriter.replace(node, rewriter.call(_ops.dequantize.default, *arguments))
    return int(torch.count_nonzero(alive) - torch.count_nonzero(kept))


def quantize_weight(
    weight: Tensor, qmin: int, qmax: int, axis: int | None
) -> tuple[Tensor, Tensor]:
    """Return the integers of ``weight`` and their scale; operations as in fake_quantize_weight."""
    scale = symmetric_scale(weight, qmin, qmax, axis)
    steps = (weight.float() / along(scale, weight, axis)).round_().clamp_(qmin, qmax)
    return steps.to(storage_dtype(qmin, qmax)), scale


def _convert_activation(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    value, minimum, maximum, _, _, qmin, qmax = node.args
    assert isinstance(qmin, int)
    assert isinstance(qmax, int)
    low, high = _target(minimum), _target(maximum)
    scale, zero_point = affine_parameters(program.tensor(low), program.tensor(high), qmin, qmax)
    place = low.removesuffix("_minimum")
    with rewriter.before(node):
        scale_node = rewriter.add_buffer(f"{place}_scale", scale)
        zero_node = rewriter.add_buffer(f"{place}_zero_point", zero_point)
        quantized = rewriter.call(_ops.quantize.default, value, scale_node, zero_node, qmin, qmax)
        rewriter.replace(
            node, rewriter.call(_ops.dequantize.default, quantized, scale_node, zero_node)
        )
    rewriter.remove_tensor(low)
    rewriter.remove_tensor(high)
