"""The target `interpreter`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sparsefx.program import Program
from sparsefx.target import CostReport, CostRow, Target

__all__ = ["InterpretedProgram", "InterpreterTarget"]


@dataclass(frozen=True)
class InterpreterTarget(Target):
    """Runs a Program node by node and counts how often each node ran."""

    name: ClassVar[str] = "interpreter"

    def lower(self, program: Program) -> "InterpretedProgram":
        """Return a callable around the Program."""
        return InterpretedProgram(program)


class InterpretedProgram:
    """A Program that is interpreted; `cost()` counts the runs of each node so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.runs: Counter[str] = Counter()

    def __call__(self, **batch: Tensor) -> dict[str, Tensor]:
        """Run every node once; inputs and outputs as those of the Program."""
        self.program.signature.check(batch)
        inputs = [batch[name] for name in self.program.signature.input_names]
        self.runs.update(node.name for node in self.program.graph.nodes)
        outputs: dict[str, Tensor] = torch.fx.Interpreter(self.program.module).run(*inputs)
        return outputs

    def cost(self) -> CostReport:
        """Return the number of runs of each node."""
        rows = tuple(
            CostRow(f"%{node.name}", node.op, {"runs": float(self.runs[node.name])})
            for node in self.program.graph.nodes
        )
        return CostReport(origin="measured", rows=rows)

    def listing(self) -> str:
        """Return the graph as text: this is what runs."""
        return self.program.dump()

    def save(self, path: str | Path) -> Path:
        """Write the Program to the folder `path`."""
        return self.program.save(path)
