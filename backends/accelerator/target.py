"""The target `accelerator`: a Program on a simulated sparse accelerator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.architecture import Architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.report.cost import cost_report
from sparsefx.backends.accelerator.report.listing import listing
from sparsefx.backends.accelerator.report.page import write_page
from sparsefx.backends.accelerator.simulation.executor import StreamExecutor
from sparsefx.backends.accelerator.simulation.tile_level import Simulation, simulate
from sparsefx.backends.accelerator.studies.sensitivity import sensitivity as sensitivity_of
from sparsefx.backends.accelerator.workload.legalise import legalise
from sparsefx.backends.accelerator.workload.lowering import Lowering, float_linears, lower_program
from sparsefx.backends.accelerator.workload.operations import Workload
from sparsefx.backends.accelerator.workload.units import op_name, units_of
from sparsefx.errors import unnamed_inputs
from sparsefx.passes.analyses.quantized import QuantizedProducts
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.target import CostReport, Target, Unsupported

__all__ = ["Accelerator", "CompiledForAccelerator"]


@dataclass(frozen=True)
class Accelerator(Target):
    """Lowers a quantized Program to tiles of an architecture.

    Attributes:
        arch: A preset's name or the path of an architecture file.
        batch: Sequences at once, for the timing.
        sequence: Tokens of a sequence, for the timing.

    >>> str(Accelerator(arch="eie-64"))
    "accelerator{arch='eie-64'}"
    """

    name: ClassVar[str] = "accelerator"
    saves_as: ClassVar[str] = "accelerator.html"

    arch: str = "anton"
    batch: int = 1
    sequence: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("batch", "sequence")

    def check_machine(self) -> None:
        """Refuse an architecture that is not there, or wrong."""
        super().check_machine()
        load_architecture(self.arch)

    @property
    def architecture(self) -> Architecture:
        """The architecture by its name or path."""
        return load_architecture(self.arch)

    def pipeline(self) -> Pipeline:
        """Spell attention out, quantize probabilities for an int8 machine, and tag every node."""
        return legalise(self.integers)

    @property
    def integers(self) -> bool:
        """Whether the machine computes in int8."""
        return self.architecture.value_bits.value == 8

    def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """What the array cannot do: runs on the host or on the vector unit, at a cost.

        Linears with float weights cannot be lowered at all to a machine that computes in int8.
        """
        program.infer_shapes()
        host = self.architecture.host
        instead = ""
        if host is not None:
            microseconds = 2e6 * host.latency.value
            instead = f"runs on the host, {microseconds:.0f} us and its operands' way at least"
        units = units_of(program.graph).items()
        found = [
            Unsupported(f"%{node.name}", f"there is no {op_name(node)}", instead)
            for node, unit in units
            if unit == "host"
        ]
        if not self.integers:
            return tuple(found)
        exact = {site.node for site in program.facts(QuantizedProducts)}
        floats = [
            node
            for node, unit in units
            if unit == "matrix" and op_name(node) != "aten.linear" and node not in exact
        ]
        reason = "an operand is float, and the array multiplies int8"
        return (
            *found,
            *(
                Unsupported(f"%{name}", f"{why}, or choose an architecture that computes in fp16")
                for name, why in float_linears(program).items()
            ),
            *(Unsupported(f"%{n.name}", reason, "runs on the vector unit") for n in floats),
        )

    def lower(self, program: Program) -> CompiledForAccelerator:
        """Lower a Program.

        Raises:
            TargetError: When linears are float on an integer machine, or no tile fits.
        """
        return CompiledForAccelerator(program, self.architecture, self.batch, self.sequence)


class CompiledForAccelerator:
    """A Program with its tiles, streams and costs.

    Calling it computes the linears from the compressed streams, bit by bit as the array would.
    `run(...)` of a batch also tells which activations are zero, and later timings use them.
    """

    def __init__(
        self, program: Program, architecture: Architecture, batch: int, sequence: int
    ) -> None:
        self.program = program.copy().eval()
        self.architecture = architecture
        self.machine = Machine(architecture)
        self.sizes = program.signature.sizes(batch, sequence)
        self._executor: StreamExecutor | None = None
        self._simulation: Simulation | None = None
        self.workload = self._workload()

    def _workload(self) -> Workload:
        integers = self.architecture.value_bits.value == 8
        active = self._executor.active if self._executor else {}
        return lower_program(self.program, Lowering(self.sizes, integers, active))

    @property
    def executor(self) -> StreamExecutor:
        """The functional model; encodes all weights on first use."""
        if self._executor is None:
            self._executor = StreamExecutor(self.program, self.machine.form)
        return self._executor

    def __call__(self, *unnamed: object, **batch: Tensor) -> dict[str, Tensor]:
        """Compute one batch; inputs and outputs as those of the Program."""
        if unnamed:
            raise unnamed_inputs(self.program.signature.input_names, call="compiled")
        return self.executor.execute(**batch)

    def observe(self, **batch: Tensor) -> dict[str, Tensor]:
        """Compute one batch and time batches of its size with its real activation zeros."""
        outputs = self(**batch)
        shapes = {
            dim: size
            for spec in self.program.signature.inputs
            for dim, size in zip(spec.dims, batch[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        self.sizes.update(shapes)
        self.workload = self._workload()
        self._simulation = None
        return outputs

    @property
    def simulation(self) -> Simulation:
        """The tile-level simulation of the sizes that the target was given."""
        if self._simulation is None:
            self._simulation = simulate(self.workload, self.architecture)
        return self._simulation

    def cost(self) -> CostReport:
        """Cycles, bytes and energy of every node."""
        return cost_report(self.simulation)

    def listing(self) -> str:
        """The instructions: for each operation its tiles, loads, computes and stores."""
        return listing(self.simulation)

    def save(
        self, path: str | Path, format: Literal["html"] = "html", *, sensitivity: bool = False
    ) -> Path:
        """Write the report page to `path` and return the path.

        Args:
            path: The file.
            format: Of the file.
            sensitivity: Put in how the result moves with each number that nobody published. The
                page alone is written at once; this simulates some thirty times more.
        """
        swings = sensitivity_of(self.simulation) if sensitivity else None
        return write_page(self.simulation, Path(path), swings)
