"""The lowered Program: prepares the inputs, runs the plan, runs the rest, returns tensors."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from sparsefx.backends.cpu.analyses.asked import index_trials
from sparsefx.backends.cpu.analyses.axes import arranged
from sparsefx.backends.cpu.artifact import Interface, write
from sparsefx.backends.cpu.codegen.engine import assembly as write_assembly
from sparsefx.backends.cpu.explain import Explanation, explain_layers, stored_tables
from sparsefx.backends.cpu.lowering.lowering import Lowered
from sparsefx.backends.cpu.measure.rates import BUILT_IN, measured_rates
from sparsefx.backends.cpu.plan.indices import Rule, check_index, find_rule, too_long
from sparsefx.backends.cpu.plan.plan import Step
from sparsefx.backends.cpu.runtime.in_process import InProcess
from sparsefx.backends.cpu.runtime.recent import Recent
from sparsefx.backends.cpu.runtime.runtime import Runtime
from sparsefx.errors import ProgramError, unnamed_inputs
from sparsefx.huggingface.drop_in import DropIn
from sparsefx.inputs.failures import explained
from sparsefx.program import Program
from sparsefx.target import CostReport, CostRow, Unsupported

logger = logging.getLogger(__name__)

__all__ = ["CpuCompiled"]

_FIRST_IS_PADDING = (
    "sequences begin with padding, and the head reads their first token: such batches run in "
    "PyTorch; pad at the end to run them here"
)
_NO_MARKS = (
    "{} holds more than 0 and 1, by which the model may tell more than padding: such batches run "
    "in PyTorch"
)


class CpuCompiled(InProcess):
    """A Program as machine code.

    Call it like the Program. It is safe to call from several threads; calls take turns.

    Args:
        program: The lowered Program in eval mode.
        lowered: Its plan.
        runtime: The plan's executor.
        measured: Whether its formats were chosen by the measured rates of the machine.
        note: Why its instruction set is not a wider one, or "".
    """

    def __init__(
        self,
        program: Program,
        lowered: Lowered,
        runtime: Runtime,
        *,
        measured: bool,
        note: str = "",
    ) -> None:
        self._program = program
        self._lowered = lowered
        self._runtime = runtime
        self._measured = measured
        self._note = note
        self._inputs = {str(n.target): n for n in program.graph.find_nodes(op="placeholder")}
        self._outputs = program.outputs()
        count = len(lowered.indices)
        self._fixed: Recent[tuple[str, int, int], NDArray[np.int32]] = Recent(count)
        # Names, shapes, types and devices of the last call; None before the first.
        self._checked: list[tuple[object, ...] | None] | None = None
        self._reads_first = lowered.plan.picks or bool(lowered.rest)
        self._told: set[str] = set()  # why batches run in PyTorch

    def __call__(self, *unnamed: object, **batch: Tensor) -> dict[str, Tensor]:
        """Run a batch; inputs and outputs as those of the Program.

        A sequence of padding alone is computed as if all its tokens were real. Where a head reads
        the first token, and that is padding, the whole Program runs in PyTorch; so it does where a
        mask holds other numbers than 0 and 1, which the plan was not tried on.

        Raises:
            ProgramError: For inputs that the Program refuses, or that are not on the CPU.
        """
        if unnamed:
            raise unnamed_inputs(self._program.signature.input_names, call="compiled")
        form: list[tuple[object, ...] | None] = [
            (name, t.shape, t.dtype, t.device) if isinstance(t, Tensor) else None
            for name, t in batch.items()
        ]
        if form != self._checked:
            self._check(batch)
            self._checked = form
        with explained(self._program, batch):
            mask = self._mask(batch)
            if why := self._obstacle(batch, mask):
                return self._in_pytorch(batch, why)
            return self._finished(self._planned(batch, mask))

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse inputs that the Program refuses, or that are not on the CPU."""
        self._program.signature.check(batch)
        for name, tensor in batch.items():
            if tensor.device.type != "cpu":
                raise ProgramError(
                    f"the tensor is on {tensor.device}; this model runs on the CPU",
                    who="cpu",
                    where=name,
                    hint=f"{name}.cpu()",
                )

    def _obstacle(self, batch: Mapping[str, Tensor], mask: NDArray[np.bool_]) -> str:
        """Why a batch runs in PyTorch, "" if it does not."""
        padding = self._lowered.padding
        if padding is not None and self._lowered.marks:
            values = batch[padding]
            if not torch.equal(values, values.ne(0).to(values.dtype)):
                return _NO_MARKS.format(padding)
        return _FIRST_IS_PADDING if self._reads_first and not mask[:, 0].all() else ""

    def _in_pytorch(self, batch: Mapping[str, Tensor], why: str) -> dict[str, Tensor]:
        """What the Program itself says: it computes padding too, and reads masks as it likes."""
        if why not in self._told:
            logger.warning(why)
            self._told.add(why)
        with torch.no_grad():
            return dict(self._program(**batch))

    def _planned(self, batch: Mapping[str, Tensor], mask: NDArray[np.bool_]) -> dict[fx.Node, Any]:
        """The inputs, and what the plan makes of them."""
        lowered = self._lowered
        known: dict[fx.Node, Any] = {node: batch[name] for name, node in self._inputs.items()}
        shape = self._shape(batch)
        indices = {
            name: self._index(name, node, known, shape) for name, node in lowered.indices.items()
        }
        results = self._runtime.run(mask, indices) if indices else {}
        for name, node in lowered.exports.items():
            found = torch.from_numpy(arranged(results[name], lowered.layouts[name]))
            known[node] = found.to(node.meta["val"].dtype)  # plans compute float16 in float32
        return known

    def _finished(self, known: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
        """The outputs: as the plan wrote them, or computed from that in PyTorch."""
        values = self._lowered.host.evaluate(self._outputs.values(), known)
        return {name: values[node] for name, node in self._outputs.items()}

    @property
    def outside(self) -> tuple[Unsupported, ...]:
        """What runs in PyTorch, why, and how many linears do so because of it."""
        return self._lowered.unsupported()

    def as_model(self, model: nn.Module) -> DropIn:
        """A callable with the calling convention and output class of a Hugging Face model."""
        return DropIn(self, self._program, model)

    def _shape(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        rows, tokens = batch[self._lowered.host.tokens.name].shape
        return rows, tokens

    def _mask(self, batch: Mapping[str, Tensor]) -> NDArray[np.bool_]:
        """True for real tokens; a sequence without any keeps all, as no softmax is empty."""
        if self._lowered.padding is None:
            return np.ones(self._shape(batch), np.bool_)
        mask: NDArray[np.bool_] = batch[self._lowered.padding].ne(0).numpy()
        if not mask.all():
            mask[~mask.any(1)] = True
        return mask

    def _index(
        self, name: str, node: fx.Node | None, known: dict[fx.Node, Any], shape: tuple[int, int]
    ) -> NDArray[np.int32]:
        """The index of an embedding as int32 [batch, sequence]; kept if only sizes decide it."""
        key, lowered = (name, *shape), self._lowered
        kept = self._fixed.get(key)
        if kept is not None:
            return kept
        wide: NDArray[Any] = np.arange(shape[1])
        if node is not None:
            known = known if node in known else lowered.host.evaluate([node], known)
            wide = known[node].detach().numpy()
        if wide.shape[-1] not in (1, shape[1]):  # a table of positions was sliced, and is shorter
            raise too_long(shape[1], wide.shape[-1])
        check_index(name, wide, lowered.table_rows[name])
        whole = wide if wide.shape == shape else np.broadcast_to(wide, shape)
        index: NDArray[np.int32] = whole.astype(np.int32)
        if node is None or lowered.host.sizes_only(node):
            self._fixed.keep(key, index)
        return index

    def cost(self) -> CostReport:
        """Multiply-adds per token of every step, non-zero ones and all, and bytes of weights."""
        rows = []
        for step in self._lowered.plan.steps:
            stored = sum(w.nbytes for w in step.words.values() if isinstance(w, np.ndarray))
            figures = {"weight bytes": float(stored)}
            if "macs" in step.facts:
                figures["macs per token"] = step.facts["macs"]
                figures["dense macs per token"] = step.facts["dense_macs"]
            rows.append(CostRow(step.node, step.kernel.kind, figures))
        note = "attention adds 2 x channels multiply-adds per token and key"
        return CostReport("modelled", tuple(rows), (note,))

    def listing(self) -> str:
        """The plan as text."""
        lines = []
        arena = self._runtime.arena
        for number, step in enumerate(self._lowered.plan.steps):
            lines.append(f"{number:4d}  {step.kernel.kind:24s} {step.node}")
        lines.append(f"arena: {arena.token_bytes[0]} bytes per token")
        lines += [f"outside: {node.format_node()}" for node in self._lowered.rest]
        return "\n".join(lines) + "\n"

    def code(self, step: int, *, width: int = 64, assembly: bool = False) -> str:
        """LLVM IR, or the assembly, of one step of the listing.

        Args:
            step: Its number in :meth:`listing`.
            width: Panel width in tokens: 16, 32 or 64.
            assembly: Assembly instead of IR.
        """
        isa = self._runtime.isa
        text = self._lowered.plan.steps[step].kernel.code(isa, width)[1]
        return write_assembly(text, isa) if assembly else text

    def explain(self, batch: int = 1, tokens: int = 128, *, timed: bool = False) -> Explanation:
        """For every linear: the format it got, what others would cost, and where zeros pay.

        Args:
            batch: Sequences.
            tokens: Tokens of each, without padding.
            timed: Run every step on one core, and tell the rate it reached; with what PyTorch takes
                for the rest.
        """
        runtime, seconds = self._runtime, None
        if timed:
            shape = (batch, tokens)
            indices = {name: np.zeros(shape, np.int32) for name in self._lowered.indices}
            times = runtime.time_steps(np.ones(shape, np.bool_), indices)
            seconds = _by_kind(self._lowered.plan.steps, times)
        rates = measured_rates(runtime.isa) if self._measured else BUILT_IN
        layers, isa = self._lowered.layers, runtime.isa.name
        described = f"{isa} ({self._note})" if self._note else isa
        found = explain_layers(layers, described, (batch, tokens), rates, seconds)
        apart = self._seconds_outside(batch, tokens) if timed and self._lowered.rest else None
        dropped = self._lowered.heads_dropped
        tables = stored_tables(self._lowered.plan.steps)
        return replace(
            found, linears=self._lowered.linears, heads=dropped, apart=apart, embeddings=tables
        )

    def _seconds_outside(self, rows: int, tokens: int) -> float:
        """What PyTorch takes for the part that no kernel computes, the least of three runs."""
        sample = self._lowered.host.sample(set(self._inputs.values()), rows, tokens)
        batch = {str(node.target): value for node, value in sample.items()}
        known, found = self._planned(batch, self._mask(batch)), []
        for _ in range(3):
            start = time.perf_counter()
            self._finished(known)
            found.append(time.perf_counter() - start)
        return min(found)

    def save(self, path: str | Path) -> Path:
        """Write the Program, and beside it what `artifact.load` needs to run without it.

        That part is left out with a warning, and an older one removed, where nodes run outside the
        plan or an index is computed in a way of its own: then lower what `Program.load` gives.
        """
        folder = self._program.save(Path(path))
        interface = self._interface()
        if interface is not None:
            write(folder, interface, self._runtime)
            return folder
        outside = "; ".join(f"{found.where}: {found.reason}" for found in self.outside)
        logger.warning(
            "%s holds the Program without its code, as a part runs in PyTorch (%s); "
            "run it with CpuTarget().lower(Program.load(folder))",
            *(folder, outside or "an index or output is computed in a way of its own"),
        )
        return folder

    def _interface(self) -> Interface | None:
        """What a reader without the graph must know; None if that does not suffice."""
        lowered, signature = self._lowered, self._program.signature
        names = {node: name for name, node in lowered.exports.items()}
        shapes = {spec.dims for spec in signature.inputs}
        plain = len(shapes) == 1 and len(next(iter(shapes))) == 2
        if not plain or lowered.rest or any(node not in names for node in self._outputs.values()):
            return None
        rules: dict[str, Rule] = {}
        special = int(self._program.config.get("pad_token_id") or 0)
        for name, node in lowered.indices.items():
            rule: Rule | None = {"kind": "positions", "first": 0}
            if node is not None:
                trials = index_trials(lowered.host, node, special)
                rule = None if trials is None else find_rule(trials, special)
            if rule is None:
                return None
            rules[name] = rule
        return Interface(
            signature.input_names,
            {name: names[node] for name, node in self._outputs.items()},
            rules,
            lowered.padding,
            {name: self._lowered.table_rows[name] for name in lowered.indices},
            {name: lowered.layouts[names[node]].encoded() for name, node in self._outputs.items()},
            *(next(iter(shapes)), signature.conditions, lowered.marks),
        )


def _by_kind(steps: Sequence[Step], seconds: Sequence[float]) -> dict[str, dict[str, float]]:
    """Seconds of steps by kind and node; all linears are of the kind "linear"."""
    found: dict[str, dict[str, float]] = {}
    for step, took in zip(steps, seconds, strict=True):
        kind = "linear" if step.kernel.spec[0] == "linear" else step.kernel.kind
        found.setdefault(kind, {})[step.node] = took
    return found
