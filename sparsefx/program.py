"""Program: a model as a graph, with what is known of it and what was done to it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, fx, nn

from sparsefx.errors import ProgramError, did_you_mean, unnamed_inputs
from sparsefx.graph.devices import as_device, move_constants
from sparsefx.graph.digest import tensor_digest
from sparsefx.graph.memory import freed_with_last_use
from sparsefx.graph.printing import format_facts, format_node
from sparsefx.graph.shapes import ShapeFact, Shapes
from sparsefx.graph.writes import count_optimizer_steps
from sparsefx.hooks import active_passes, calling
from sparsefx.inputs.failures import explained
from sparsefx.inputs.signature import Signature
from sparsefx.problem import MULTI_LABEL
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.analysis import Analysis
    from sparsefx.passbase import Pass, Skip

__all__ = ["HistoryEntry", "Program"]

T = TypeVar("T")


@dataclass(frozen=True)
class HistoryEntry:
    """One pass that was run: its text form, what it did, and the fingerprint afterwards."""

    spec: str
    applied: int
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]
    changed: bool
    fingerprint: str


class Program:
    """A graph of ATen operators with its tensors, signature, properties and history.

    Call it with the inputs by name; it returns a dict from output name to tensor. It trains in any
    PyTorch loop; after each ``optimizer.step()``, and before ``optimizer.zero_grad()``, call
    :meth:`step`, which lets masks and observers that passes put into the graph move on.

    Attributes:
        signature: Names, dtypes and dimensions of the inputs, names of the outputs.
        properties: What passes have established.
        history: What was run, in order.
        steps: How many times :meth:`step` was called.
        config: The configuration of the Hugging Face model it came from, else empty.
        ties: Groups of state_dict names that are one tensor; the first of a group is in the graph.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        signature: Signature,
        *,
        config: Mapping[str, Any] | None = None,
        ties: tuple[tuple[str, ...], ...] = (),
        shapes: Shapes | None = None,
    ) -> None:
        count_optimizer_steps()  # facts and digests are kept until a tensor is written to
        self._module = freed_with_last_use(module)
        self._is_compiled = True
        self.signature = signature
        self.properties: frozenset[Property] = frozenset()
        self.history: tuple[HistoryEntry, ...] = ()
        self._active: tuple[Pass, ...] = ()
        self.steps = 0
        self.config: dict[str, Any] = dict(config or {})
        self.ties = ties
        self._revision = 0
        self._shapes = shapes
        self._facts: dict[type, tuple[object, object]] = {}
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}
        # Masks that the verifier found to be 0 or 1, with the versions that it saw.
        self._sound: dict[str, tuple[object, ...]] = {}

    @property
    def active(self) -> tuple[Pass, ...]:
        """Passes whose ``after_step`` runs in :meth:`step`.

        Raises:
            PassError: When it is set, to what is no pass or has no method that training calls.
        """
        return self._active

    @active.setter
    def active(self, passes: Iterable[Pass]) -> None:
        self._active = active_passes(passes)

    # -- running ---------------------------------------------------------------------------------

    def __call__(self, *unnamed: object, **batch: Tensor) -> dict[str, Tensor]:
        """Run the graph on inputs that are given by name.

        Raises:
            ProgramError: When an input is missing, unknown, given without its name, of a wrong
                dtype or shape, longer than the model's positions, or outside its vocabulary.
        """
        if unnamed:
            raise unnamed_inputs(self.signature.input_names, call="program")
        self.signature.check(batch)
        with explained(self, batch):
            outputs: dict[str, Tensor] = self.module(**batch)
        return outputs

    def train(self, mode: bool = True) -> Program:
        """Switch every dropout and observer on (or off)."""
        self._module.train(mode)
        return self

    def eval(self) -> Program:
        """Switch every dropout and observer off."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this context: evaluation mode and no gradients; the mode is restored after it."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    @property
    def multi_label(self) -> bool:
        """Whether the configuration says that a text has any number of the classes."""
        return bool(self.config.get("problem_type") == MULTI_LABEL)

    @property
    def training(self) -> bool:
        """Whether the Program is in training mode."""
        return self._module.training

    def step(self) -> None:
        """Let masks and schedules move on; call it after each ``optimizer.step()``.

        And before ``optimizer.zero_grad()``: some passes learn from the gradients of the step.
        Where gradients are accumulated over several batches, it is called once for all of them.

        Raises:
            PassError: What the ``after_step`` of an active pass raised, with place and step.
        """
        self.steps += 1
        for index, item in enumerate(self.active):
            with calling(item, "after_step", f"active pass {index}", self.steps):
                item.after_step(self, self.steps)

    def to(self, device: torch.device | str) -> Program:
        """Move tensors, and the constants that the graph makes, to ``device``.

        Raises:
            ProgramError: It is no device, such as a type of numbers.
        """
        device = as_device(device)
        self._module.to(device)
        move_constants(self.graph, device)
        self.invalidate()
        return self

    # -- tensors ---------------------------------------------------------------------------------

    @property
    def module(self) -> fx.GraphModule:
        """The module, ready to run; tensors are attributes under their state_dict names."""
        if not self._is_compiled:  # once for all passes of a pipeline, not after each
            self._module.recompile()
            self._is_compiled = True
        return self._module

    @property
    def graph(self) -> fx.Graph:
        """The FX graph; change it through :class:`sparsefx.rewrite.Rewriter` alone."""
        return self._module.graph

    def outputs(self) -> dict[str, fx.Node]:
        """Return the node of each output, by name."""
        return dict(self.graph.output_node().args[0])  # type: ignore[arg-type]  # a dict

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU where it has none."""
        found = (*self._module.parameters(), *self._module.buffers())
        return found[0].device if found else torch.device("cpu")

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters, each once."""
        return self._module.parameters()

    def named_tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, in a fixed order, each tensor once."""
        found: dict[str, Tensor] = dict(self._module.named_parameters())
        found.update(self._module.named_buffers())
        return dict(sorted(found.items()))

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer, under any of its tied names.

        Raises:
            ProgramError: When there is none of this name.
        """
        path, _, leaf = self.canonical(name).rpartition(".")
        module: nn.Module | None = self._module
        for part in path.split(".") if path else ():  # get_submodule takes seven times as long
            module = None if module is None else module._modules.get(part)
        value = getattr(module, leaf, None)
        if not isinstance(value, Tensor):
            raise ProgramError(
                f"there is no tensor {name!r}",
                who="program",
                where=name,
                hint=did_you_mean(name, self.named_tensors()),
            )
        return value

    def canonical(self, name: str) -> str:
        """Return the name under which the graph holds a tensor that may have several."""
        for group in self.ties:
            if name in group:
                return group[0]
        return name

    # -- facts -----------------------------------------------------------------------------------

    def facts(self, analysis: type[Analysis[T]]) -> T:
        """Return what ``analysis`` knows of this Program; cached until the Program changes.

        Writes through ``.data`` are not seen: write under ``torch.no_grad()``.

        Raises:
            ProgramError: For something else than an Analysis with a ``compute`` of its own.
        """
        lacking = getattr(analysis, "__abstractmethods__", ())
        if not callable(getattr(analysis, "compute", None)) or "compute" in lacking:
            raise ProgramError(
                f"expected an Analysis that defines compute(), got {analysis!r}",
                who="facts",
                hint="class Mine(Analysis): compute is a classmethod that is given the Program",
            )
        key: object = self._revision
        if analysis.reads_values:
            state = tuple((id(t), t._version) for t in self.named_tensors().values())
            key = (self._revision, state)
        self.infer_shapes()
        cached = self._facts.get(analysis)
        if cached is None or cached[0] != key:
            cached = self._facts[analysis] = (key, analysis.compute(self))
        return cached[1]  # type: ignore[return-value]  # stored under its own class

    def shape_of(self, node: fx.Node) -> ShapeFact | None:
        """Return dtype and dimensions of a node's value; None when it is not a tensor."""
        return self.shapes.fact(node)

    @property
    def shapes(self) -> Shapes:
        """Shape inference for this graph, which has run over all of it."""
        self.infer_shapes()
        assert self._shapes is not None
        return self._shapes

    def infer_shapes(self) -> None:
        """Have every node carry its value as ``meta["val"]``; once, until the graph changes.

        Capture and a pipeline see to it; a loaded Program has none of them yet.
        """
        if self._shapes is None:
            self._shapes = Shapes(self.signature)
            self._shapes.infer(self._module)

    def invalidate(self, *, shapes: bool = True) -> None:
        """Drop what is cached about the graph, its compiled code too; the Rewriter calls this."""
        self._revision += 1
        self._facts.clear()
        if shapes:
            self._shapes = None
        self._is_compiled = False

    def fingerprint(self) -> str:
        """Return a hash of graph and tensors: equal exactly when both are equal."""
        digest = hashlib.sha256(self.dump().encode())
        for name, known in self.digests().items():
            digest.update(f"{name}:{known}".encode())
        return digest.hexdigest()

    def digests(self) -> dict[str, str]:
        """Return a hash of each parameter and buffer by name; see :meth:`named_tensors`."""
        return {name: self._digest(name, tensor) for name, tensor in self.named_tensors().items()}

    def _digest(self, name: str, tensor: Tensor) -> str:
        version = (id(tensor), tensor._version)
        cached = self._digests.get(name)
        if cached is None or cached[0] != version:
            cached = self._digests[name] = (version, tensor_digest(tensor))
        return cached[1]

    def dump(self, *, facts: bool = False) -> str:
        """Return the graph as deterministic text, one node a line.

        Args:
            facts: Also print shapes, dtypes, the share of zeros of each tensor, the pass that made
                a node and the module it came from.
        """
        inputs = ", ".join(str(spec) for spec in self.signature.inputs)
        lines = [f"program({inputs}) {{"]
        for node in self.graph.nodes:
            if node.op == "placeholder":
                continue
            line = f"  {format_node(node)}"
            if facts:
                tensor = self.tensor(str(node.target)) if node.op == "get_attr" else None
                line += f"  # {format_facts(node, self.shape_of(node), tensor)}"
            lines.append(line)
        lines.append("}")
        if self.properties:
            lines.append(f"properties: {', '.join(sorted(str(p) for p in self.properties))}")
        lines.extend(f"active: {item}" for item in self.active)
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        count = len(self.graph.nodes)
        properties = ", ".join(sorted(str(p) for p in self.properties)) or "none"
        return f"<Program: {count} nodes, outputs {list(self.signature.outputs)}, {properties}>"

    # -- copies and files ------------------------------------------------------------------------

    def copy(self, *, share_tensors: bool = False) -> Program:
        """Return an independent Program with the same graph, tensors, properties and history.

        Args:
            share_tensors: Have both hold the same tensors, for passes that change none of them.
        """
        shared = self.named_tensors().values() if share_tensors else ()
        return self.__deepcopy__({id(tensor): tensor for tensor in shared})

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """Return :meth:`copy`; what holds the module too gets a copy that is of one piece."""
        module = copy.deepcopy(self._module, memo)
        twin = Program(module, self.signature, ties=self.ties, shapes=self._shapes)
        twin.config = copy.deepcopy(self.config)
        twin.properties, twin.history = self.properties, self.history
        twin.active, twin.steps = self.active, self.steps
        twin._digests = {
            name: ((id(twin.tensor(name)), twin.tensor(name)._version), digest)
            for name, (version, digest) in self._digests.items()
            if version == _version_of(self, name)
        }
        return twin

    def __reduce__(self) -> str:
        raise ProgramError(
            "it cannot be pickled, nor copied by copy.copy",
            who="program",
            hint="program.save(folder) and Program.load(folder) keep it, program.copy() copies it",
        )

    def save(self, folder: str | Path) -> Path:
        """Write graph, tensors and manifest to ``folder``; see :mod:`sparsefx.storage`."""
        from sparsefx.storage.programs import save_program

        return save_program(self, Path(folder))

    @staticmethod
    def load(folder: str | Path, *, passes: Iterable[type[Pass]] = ()) -> Program:
        """Read what :meth:`save` wrote; runs no code from it. ``passes``: classes of one's own.

        Raises:
            ArtifactError: A file is missing, cut, altered or of another version, or a pass unknown.
        """
        from sparsefx.storage.programs import load_program

        return load_program(Path(folder), passes)


def _version_of(program: Program, name: str) -> tuple[int, int] | None:
    try:
        tensor = program.tensor(name)
    except ProgramError:
        return None
    return (id(tensor), tensor._version)
