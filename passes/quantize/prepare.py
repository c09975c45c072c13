"""The pass quantize-prepare: fake quantization as nodes of the graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import fx

import sparsefx.graph.fake_quantization  # noqa: F401  # registers the operators
from sparsefx.graph.effects import shared_with_writes
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.analyses.ties import names_of
from sparsefx.passes.quantize.sites import QuantizableLinear, find_linears, is_requantized_in_paper
from sparsefx.passes.selection import check_selection, unmatched, why_left_out
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["STEP", "WEIGHT_RANGES", "QuantizePrepare"]

STEP = "quantization_step"
"""The buffer (int64 scalar) that counts optimizer steps since quantize-prepare."""

ACTIVATION_RANGE = (0, 255)
WEIGHT_RANGES = {"full": (-128, 127), "narrow": (-127, 127), "reduced": (-64, 63)}

_ops = torch.ops.sparsefx


@dataclass(frozen=True)
class QuantizePrepare(Pass):
    """Puts fake quantizers and their observers before the linears of a Program.

    Quantization-aware training as in Prune Once for All (Zafrir et al. 2021, section 3.3, which
    follows Q8BERT). For each chosen linear:

    - its weight goes through ``fake_quantize_weight``: int8, symmetric, zero point 0, so zeros stay
      exactly zero; scale = max|w| / 127.5 for ``weight_range='full'``;
    - its input goes through ``observe`` and ``fake_quantize``: uint8, affine, per tensor. Linears
      that read one value (query, key, value) share one quantizer;
    - its output goes through a second pair of these, if ``requantize`` says so.

    With lo, hi the observed minimum and maximum (exponential averages), widened to hold 0:

        scale = (hi - lo) / 255,  zero_point = round(-lo / scale)
        y = (clamp(round(x / scale) + zero_point, 0, 255) - zero_point) * scale

    Observers move in training mode alone. Embeddings, layer norms, softmax, residual sums and the
    two products of attention stay float32. Masks are respected: what is quantized is
    ``weight * mask``. Establishes quant-prepared; end it with quantize-convert.

    What it skips, with a reason: linears that include and exclude leave out; a weight that an
    embedding shares (it stays float32); a weight that the graph computes; a matrix that something
    else than a linear multiplies by (a convolution, ``x @ w``).

    Attributes:
        weights: One scale for each weight ``tensor``, or for each output ``channel``.
        weight_range: ``full`` -128..127 (the paper's); ``narrow`` -127..127, in which the largest
            weight is exact; ``reduced`` -64..63, for CPUs with AVX2 but without VNNI, whose 16-bit
            sums of two u8 x s8 products overflow with larger weights.
        requantize: Whose outputs are quantized again: ``paper`` (linears that feed the attention
            scores or an activation function: query, key, intermediate, pooler), ``all``, ``none``,
            or a regular expression searched in the module name.
        average: Averaging constant of the observers, in 0..1; 0 keeps the extremes ever seen.
        begin: Optimizer step at which observers and fake quantizers start.
        freeze: Optimizer step at which observers stop to move; None for never.
        roles: Roles of the linears to quantize; all of them by default, pooler and head too.
        include: Regular expressions; a weight's name must match one of them, when there are any.
        exclude: Regular expressions; a weight's name must match none of them.

    >>> import torch
    >>> from sparsefx import capture, Pipeline
    >>> from sparsefx.testing import graph_text
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
    >>> program = capture(model.eval(), {"input": torch.randn(3, 4)})
    >>> print(graph_text(program))
    %linear = aten.linear(%input_1, %_0_weight)
    return {output: %linear}
    >>> print(graph_text(Pipeline.parse("quantize-prepare").run(program)))
    %mode = mode()
    %fake_quantize_weight = sparsefx.fake_quantize_weight(%_0_weight, %quantization_step, 0,
        -128, 127)
    %observe = sparsefx.observe(%input_1, %_0_input_minimum, %_0_input_maximum,
        %quantization_step, 0.01, 0, None, %mode)
    %fake_quantize = sparsefx.fake_quantize(%input_1, %_0_input_minimum, %_0_input_maximum,
        %quantization_step, 0, 0, 255)
    %linear = aten.linear(%fake_quantize, %fake_quantize_weight)
    return {output: %linear}
    """

    name: ClassVar[str] = "quantize-prepare"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.QUANT_PREPARED})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = frozenset(
        {Property.QUANT_PREPARED, Property.QUANTIZED, Property.FUSED}
    )

    weights: Literal["tensor", "channel"] = "tensor"
    weight_range: Literal["full", "narrow", "reduced"] = "full"
    requantize: str = "paper"
    average: float = 0.01
    begin: int = 0
    freeze: int | None = None
    roles: tuple[str, ...] = ("encoder", "pooler", "head", "embedding", "other")
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self)
        if not 0.0 <= self.average <= 1.0:
            raise self.refuse("average", "expected a number in 0..1")
        if self.begin < 0:
            raise self.refuse("begin", "expected 0 or more")
        if self.freeze is not None and self.freeze <= self.begin:
            raise self.refuse(
                "freeze",
                f"observers would never see a value: expected more than begin={self.begin}",
            )
        try:
            re.compile(self.requantize)
        except re.error as error:
            raise self.refuse("requantize", f"not a regular expression: {error}") from error

    @property
    def last_step(self) -> int:
        """The step at which quantization begins: without it nothing would be observed."""
        return self.begin

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Put the quantizers in."""
        sites, skipped = find_linears(program)
        chosen = []
        for site in sites:
            if reason := self._left_out(program, site):
                skipped.append(Skip(site.weight, reason))
            else:
                chosen.append(site)
        names = [name for site in sites for name in names_of(program, site.weight)]
        skipped += unmatched(self.include, self.exclude, names)
        if not chosen:
            return PassReport(0, tuple(skipped))
        placer = _Placer(self, program, ctx.rewriter)
        for site in chosen:
            placer.quantize(site)
        program.active = (*program.active, self)
        note = (
            f"{placer.activations} activation and {placer.weights} weight quantizers for "
            f"{len(chosen)} linears"
        )
        return PassReport(len(chosen), tuple(skipped), (note,))

    def after_step(self, program: Program, step: int) -> None:
        """Count the step, on which ``begin`` and ``freeze`` depend."""
        program.tensor(STEP).add_(1)

    def _left_out(self, program: Program, site: QuantizableLinear) -> str:
        role = program.facts(EncoderStructure).roles.get(site.weight, Role.OTHER)
        names = names_of(program, site.weight)
        if reason := why_left_out(names, role, self.roles, self.include, self.exclude):
            return reason
        dtype = program.tensor(site.weight).dtype
        return "" if dtype == torch.float32 else f"its weight is {dtype}, expected float32"

    def requantizes(self, site: QuantizableLinear) -> bool:
        """Return whether the output of this linear is quantized again."""
        if self.requantize in ("all", "none"):
            return self.requantize == "all"
        if self.requantize == "paper":
            return is_requantized_in_paper(site.node)
        return re.search(self.requantize, site.module) is not None


class _Placer:
    """Puts quantizers into the graph, each value's once."""

    def __init__(self, options: QuantizePrepare, program: Program, rewriter: Rewriter) -> None:
        self.activations = 0
        self.weights = 0
        self._options = options
        self._rewriter = rewriter
        self._program = program
        self._held = set(program.named_tensors())
        self._quantized: dict[fx.Node, fx.Node] = {}
        self._written = shared_with_writes(program.graph)
        step = torch.zeros((), dtype=torch.int64, device=program.device)
        self._step = rewriter.add_buffer(STEP, step)
        self._training = rewriter.training()

    def quantize(self, site: QuantizableLinear) -> None:
        """Quantize the operands of a linear, and its output if so asked."""
        value = site.node.args[0]
        assert isinstance(value, fx.Node)
        with self._rewriter.before(site.node):
            weight = self._quantized.get(site.operand) or self._quantize_weight(site)
            given = self._quantized.get(value) or self._quantize_input(site, value)
        self._quantized[site.operand] = weight
        if value not in self._written:  # or it is another value where the next linear reads it
            self._quantized[value] = given
        arguments = (given, weight, *site.node.args[2:])
        self._rewriter.set_args(site.node, *arguments, **site.node.kwargs)
        if self._options.requantizes(site):
            self._quantize_output(site)

    def _quantize_weight(self, site: QuantizableLinear) -> fx.Node:
        self.weights += 1
        low, high = WEIGHT_RANGES[self._options.weight_range]
        axis = (0,) if self._options.weights == "channel" else ()
        return self._rewriter.call(
            _ops.fake_quantize_weight.default,
            *(site.operand, self._step, self._options.begin, low, high, *axis),
        )

    def _quantize_input(self, site: QuantizableLinear, value: fx.Node) -> fx.Node:
        if value.target is _ops.fake_quantize.default:
            return value
        minimum, maximum = self._range(f"{site.prefix}input", site)
        self._observe(value, minimum, maximum)
        return self._fake_quantize(value, minimum, maximum)

    def _quantize_output(self, site: QuantizableLinear) -> None:
        with self._rewriter.after(site.node):
            minimum, maximum = self._range(f"{site.prefix}output", site)
            quantized = self._fake_quantize(site.node, minimum, maximum)
        self._rewriter.replace(site.node, quantized, erase=False)
        with self._rewriter.before(quantized):
            self._observe(site.node, minimum, maximum)
        self._quantized[quantized] = quantized

    def _range(self, name: str, site: QuantizableLinear) -> tuple[fx.Node, fx.Node]:
        """Add the buffers of one observer; a linear that is called again gets a number."""
        base, count = name, 1
        while f"{name}_minimum" in self._held:
            count += 1
            name = f"{base}_{count}"
        self._held.add(f"{name}_minimum")
        self.activations += 1
        infinity = torch.full((), float("inf"), device=self._program.tensor(site.weight).device)
        minimum = self._rewriter.add_buffer(f"{name}_minimum", infinity)
        return minimum, self._rewriter.add_buffer(f"{name}_maximum", -infinity)

    def _observe(self, value: fx.Node, minimum: fx.Node, maximum: fx.Node) -> None:
        options = self._options
        self._rewriter.call(
            _ops.observe.default,
            *(value, minimum, maximum, self._step, options.average, options.begin),
            *(options.freeze, self._training),
        )

    def _fake_quantize(self, value: fx.Node, minimum: fx.Node, maximum: fx.Node) -> fx.Node:
        return self._rewriter.call(
            _ops.fake_quantize.default,
            *(value, minimum, maximum, self._step, self._options.begin, *ACTIVATION_RANGE),
        )
