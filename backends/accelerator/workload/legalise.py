"""The passes before lowering; the last, accelerator-tag, names the unit that runs each node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsefx.backends.accelerator.workload.probabilities import QuantizeProbabilities
from sparsefx.backends.accelerator.workload.units import op_name, units_of
from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.quantize.gather_integers import GatherIntegers
from sparsefx.passes.structure.decompose_attention import DecomposeAttention
from sparsefx.pipeline import Pipeline

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["UNIT", "AcceleratorTag", "legalise"]

UNIT = "accelerator_unit"
"""Key in a node's meta under which the unit stands."""


@dataclass(frozen=True)
class AcceleratorTag(Pass):
    """Writes the unit (matrix, vector, host, free) of every node into its meta.

    What only the host can run is listed as skipped, with the operator's name. The graph itself does
    not change, so the target brings it into form first, with `decompose-attention`.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> program = small_program(torch.nn.Linear(4, 2), input=torch.ones(1, 4))
    >>> Pipeline.parse("accelerator-tag").run(program).history[-1].notes
    ('1 matrix',)
    """

    name: ClassVar[str] = "accelerator-tag"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Tag the graph."""
        program.infer_shapes()
        units = units_of(program.graph)
        for node, unit in units.items():
            node.meta[UNIT] = unit
        skipped = tuple(
            Skip(f"%{node.name}", f"{op_name(node)} runs on the host")
            for node, unit in units.items()
            if unit == "host"
        )
        counts = ", ".join(f"{n} {unit}" for unit, n in sorted(Counter(units.values()).items()))
        return PassReport(len(units), skipped, (counts,) if counts else ())


def legalise(integers: bool) -> Pipeline:
    """The passes before lowering; those that an int8 machine needs too, when `integers` says so.

    Probabilities are quantized (see quantize-probabilities) where the Program quantizes what they
    multiply. A product with a float operand is left, and runs on the vector unit.
    """
    passes: list[Pass] = [
        GatherIntegers(on_no_match="ignore"),
        DecomposeAttention(on_no_match="ignore"),
    ]
    if integers:
        passes.append(QuantizeProbabilities(on_no_match="ignore"))
    return Pipeline((*passes, AcceleratorTag()))
