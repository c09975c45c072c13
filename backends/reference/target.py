"""The target ``reference``: plain PyTorch, the semantics that all other targets are held to."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from sparsefx.backends.reference.integer import integer_linear, integer_product
from sparsefx.errors import unnamed_inputs
from sparsefx.graph.callables import callable_name
from sparsefx.inputs.failures import explained
from sparsefx.instruments.compare import tappable
from sparsefx.passes.analyses.quantized import (
    QuantizedLinear,
    QuantizedLinears,
    QuantizedProduct,
    QuantizedProducts,
)
from sparsefx.passes.quantize.gather_integers import GatherIntegers
from sparsefx.pipeline import Pipeline
from sparsefx.target import CostReport, CostRow, Target, Unsupported

if TYPE_CHECKING:
    from torch.fx.node import Argument

    from sparsefx.program import Program

__all__ = ["Reference", "ReferenceCompiled"]


@dataclass(frozen=True)
class Reference(Target):
    """Runs the graph as it stands, in evaluation mode, with PyTorch.

    Attributes:
        arithmetic: ``float`` runs each node as the graph says: a quantized linear multiplies
            dequantized floats. ``integer`` runs quantized linears, and products of two quantized
            activations, on their integers, with exact int32 sums
            (:mod:`sparsefx.backends.reference.integer`); it takes quantized Programs only. The two
            differ by float32 rounding.
        batch: Batch size at which cost() measures.
        sequence: Sequence length at which cost() measures.

    >>> str(Reference(arithmetic="integer"))
    "reference{arithmetic='integer'}"
    """

    name: ClassVar[str] = "reference"

    arithmetic: Literal["float", "integer"] = "float"
    batch: int = 1
    sequence: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("batch", "sequence")

    def pipeline(self) -> Pipeline:
        """Look up integers in int8 tables, so that no call dequantizes whole tables."""
        return Pipeline((GatherIntegers(on_no_match="ignore"),))

    def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """Refuse a Program without integers when integers are asked for."""
        if self.arithmetic == "float" or program.facts(QuantizedLinears):
            return ()
        reason = "no linear has integer weights; run quantize-prepare and quantize-convert before"
        return (Unsupported("program", reason),)

    def lower(self, program: Program) -> ReferenceCompiled:
        """Return ``program`` with the interface of a compiled one."""
        return ReferenceCompiled(program.copy().eval(), self)


class ReferenceCompiled:
    """A Program that runs as it stands.

    Attributes:
        program: The Program.
    """

    def __init__(self, program: Program, options: Reference) -> None:
        self.program = program
        self._options = options
        is_integer = options.arithmetic == "integer"
        self._sites: dict[fx.Node, QuantizedLinear | QuantizedProduct] = {}
        if is_integer:
            self._sites |= {site.node: site for site in program.facts(QuantizedLinears)}
            self._sites |= {site.node: site for site in program.facts(QuantizedProducts)}

    def __call__(self, *unnamed: object, **batch: Tensor) -> dict[str, Tensor]:
        """Run it; inputs and outputs as those of the Program."""
        if unnamed:
            raise unnamed_inputs(self.program.signature.input_names, call="compiled")
        return self._run(batch)[0]

    def trace(
        self, batch: Mapping[str, Tensor], nodes: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the values of the nodes named, or of all calls, by node name.

        In integer arithmetic a linear's value is computed from int32 sums.
        """
        wanted = set(tappable(self.program) if nodes is None else nodes)
        values = self._run(batch)[1]
        return {
            node.name: values[node]
            for node in self.program.graph.nodes
            if node.name in wanted and isinstance(values.get(node), Tensor)
        }

    def cost(self) -> CostReport:
        """Measure the time of each node once, after one run to warm up."""
        signature = self.program.signature
        asked = signature.taken(self._options.batch, self._options.sequence)
        batch = signature.example(signature.sizes(*asked))
        self._run(batch)
        seconds = self._run(batch)[2]
        rows = tuple(
            CostRow(node.name, callable_name(node.target), {"seconds": seconds[node]})
            for node in self.program.graph.nodes
            if node.op == "call_function"
        )
        threads = torch.get_num_threads()
        size = f"batch {asked[0]}, sequence {asked[1]}"
        note = f"PyTorch {torch.__version__}, {threads} threads, {size}, one run after a warm-up"
        return CostReport("measured", rows, (note,))

    def listing(self) -> str:
        """Return the graph as text."""
        return self.program.dump(facts=True)

    def save(self, path: str | Path) -> Path:
        """Save the Program to the folder ``path``."""
        return self.program.save(path)

    def _run(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[fx.Node, Any], dict[fx.Node, float]]:
        """Return the outputs, the value of each node, and its seconds."""
        self.program.signature.check(batch)
        runner = _Runner(self.program, self._sites)
        with torch.no_grad(), explained(self.program, batch):
            outputs: dict[str, Tensor] = runner.run(
                *(batch[name] for name in self.program.signature.input_names)
            )
        return outputs, runner.env, runner.seconds


class _Runner(fx.Interpreter):
    """Runs the graph node by node; the linears and products given run on integers."""

    def __init__(
        self, program: Program, sites: Mapping[fx.Node, QuantizedLinear | QuantizedProduct]
    ) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        self.seconds: dict[fx.Node, float] = {}
        self._program = program
        self._sites = sites

    def run_node(self, n: fx.Node) -> Argument:
        start = time.perf_counter()
        site = self._sites.get(n)
        if isinstance(site, QuantizedLinear):
            value: Any = self._linear(site)
        elif isinstance(site, QuantizedProduct):
            value = self._product(site)
        else:
            value = super().run_node(n)
        self.seconds[n] = time.perf_counter() - start
        return value  # type: ignore[no-any-return]  # whatever the node gives

    def _product(self, site: QuantizedProduct) -> Tensor:
        tensor, left, right = self._program.tensor, site.left, site.right
        return integer_product(
            left.moved(self.env),
            right.moved(self.env),
            scales=(tensor(left.scale), tensor(right.scale)),
            zero_points=(tensor(left.zero_point), tensor(right.zero_point)),
        )

    def _linear(self, site: QuantizedLinear) -> Tensor:
        tensor = self._program.tensor
        return integer_linear(
            self.env[site.input],
            tensor(site.weight),
            None if site.bias is None else tensor(site.bias),
            scale=tensor(site.input_scale),
            zero_point=tensor(site.input_zero_point),
            weight_scale=tensor(site.weight_scale),
        )
