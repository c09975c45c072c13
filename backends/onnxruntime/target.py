"""The target ``onnxruntime``: one ONNX file, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from sparsefx.backends.onnxruntime.export import export_onnx
from sparsefx.errors import ProgramError, TargetError, unnamed_inputs
from sparsefx.extras import need
from sparsefx.graph.callables import callable_name
from sparsefx.inputs.failures import fault_of
from sparsefx.instruments.compare import tappable
from sparsefx.pipeline import Pipeline
from sparsefx.properties import Property
from sparsefx.rewrite import Rewriter
from sparsefx.storage.files import whole_file
from sparsefx.target import CostReport, CostRow, Target, Unsupported, state_refused

if TYPE_CHECKING:
    from onnx import ModelProto

    from sparsefx.program import Program

__all__ = ["OnnxRuntime", "OnnxRuntimeCompiled", "open_session", "run_session"]

_QUANTIZE = torch.ops.sparsefx.quantize.default
_TRANSLATED = {_QUANTIZE, torch.ops.sparsefx.dequantize.default}
_RANGES = ((0, 255), (-128, 127))
_MOST_BYTES = 2**31 - 1  # of a protobuf message
_UNFINISHED = {
    Property.MASKED: "masks are not folded; run fold-masks before",
    Property.DISTILLING: "a teacher is in the graph; run strip-distillation before",
}


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """Translates a Program to ONNX (opset 21) and runs it with ONNX Runtime.

    Quantized linears stand in the file as int8 initializer -> DequantizeLinear, input ->
    QuantizeLinear -> DequantizeLinear, MatMul, Add; ONNX Runtime fuses them to its integer kernels
    when it loads the file. Float Programs are taken too. Zeros in weights bring no speed here:
    ONNX Runtime has no sparse kernels.

    On an x86 CPU without VNNI, ONNX Runtime's u8 x s8 kernels add pairs of products in 16 bits,
    which overflow when weights go beyond -64..63: results are wrong without a word. There,
    compile() sets ``session.x64quantprecision``, with which ONNX Runtime uses exact but slower u8 x
    u8 kernels; whoever runs the saved file elsewhere has to set it too, or quantize with
    ``quantize-prepare{weight_range='reduced'}``.

    A token that may look at no token, as in a sequence of padding alone, gets the mean of all
    values from ONNX Runtime's softmax, and 0 from PyTorch's fused attention: what is computed of
    such tokens may differ.

    Attributes:
        threads: Threads that share one operator; 0 leaves it to ONNX Runtime (one per core).
        optimize: Whether ONNX Runtime may fuse nodes.
        batch: Batch size at which cost() measures.
        sequence: Sequence length at which cost() measures.
        repeats: Runs over which cost() averages.

    >>> str(OnnxRuntime(threads=1))
    'onnxruntime{threads=1}'
    """

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    saves_as: ClassVar[str] = "model.onnx"

    threads: int = 0
    optimize: bool = True
    batch: int = 1
    sequence: int = 128
    repeats: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, least in (("threads", 0), ("batch", 1), ("sequence", 1), ("repeats", 1)):
            if getattr(self, option) < least:
                raise self.refuse(option, f"expected at least {least}")

    def pipeline(self) -> Pipeline:
        """Look up integers in int8 tables, and simplify: each node takes time to translate."""
        return Pipeline.parse("gather-integers{on_no_match=ignore},simplify{on_no_match=ignore}")

    def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
        """List training machinery, what has no translation, and buffers that calls change."""
        state = state_refused(program, self.name)
        found = [Unsupported(state.where, f"{state.why}; {state.hint}")] if state else []
        found += [
            Unsupported("program", reason)
            for prop, reason in _UNFINISHED.items()
            if prop in program.properties
        ]
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            name = callable_name(node.target)
            if why := _range_refused(node):
                found.append(Unsupported(f"%{node.name}", why))
            if name.startswith("sparsefx.") and not _translates(node.target):
                found.append(Unsupported(f"%{node.name}", f"{name} has no translation to ONNX"))
        return (*found, *_clashes(program), *_too_large(program))

    def lower(self, program: Program) -> OnnxRuntimeCompiled:
        """Translate ``program`` and load it.

        Raises:
            TargetError: When onnx, onnxscript or onnxruntime is missing, calls change a buffer, or
                translation fails.
        """
        if refused := state_refused(program, self.name):
            raise refused
        program = program.copy().eval()
        if any(tensor.device.type != "cpu" for tensor in program.named_tensors().values()):
            program.to("cpu")
        return OnnxRuntimeCompiled(program, self)


def _clashes(program: Program) -> list[Unsupported]:
    """Outputs that are called like an input and are another value; in ONNX a name has one."""
    placeholders = program.graph.find_nodes(op="placeholder")
    inputs = dict(zip(program.signature.input_names, placeholders, strict=True))
    return [
        Unsupported(name, "an input has the name of this output: rename one of them")
        for name, node in program.outputs().items()
        if inputs.get(name, node) is not node
    ]


def _too_large(program: Program) -> list[Unsupported]:
    tensors = {id(tensor): tensor for tensor in program.named_tensors().values()}
    held = sum(tensor.nbytes for tensor in tensors.values())
    if held <= _MOST_BYTES:
        return []
    why = f"its tensors take {held / 2**30:.2f} GiB, and an ONNX file holds 2; quantize-convert and"
    return [Unsupported("program", f"{why} quantize-embeddings make it smaller")]


def _range_refused(node: fx.Node) -> str:
    """Why the range of a quantize node is lost in ONNX, which saturates at the type; "" if not."""
    if node.target is not _QUANTIZE or node.args[3:5] in _RANGES:
        return ""
    low, high = node.args[3:5]
    return f"it quantizes to {low}..{high}; ONNX has 0..255 and -128..127"


def _translates(target: object) -> bool:
    return target in _TRANSLATED or getattr(target, "__name__", "") == "dropout_rate"


def _refused(program: Program, error: Exception) -> TargetError:
    """Why ONNX Runtime does not load a model: for most floats but float32 it has few kernels."""
    kinds = {str(t.dtype).removeprefix("torch.") for t in program.named_tensors().values()}
    others = sorted(kind for kind in kinds - {"float32"} if "float" in kind)
    hint = f"the model is in {' and '.join(others)}: call model.float() before the capture"
    return TargetError(
        f"ONNX Runtime does not load the model: {error}",
        who=OnnxRuntime.name,
        hint=hint if others else "",
    )


class OnnxRuntimeCompiled:
    """A Program in ONNX Runtime.

    Attributes:
        program: The Program that was translated.
        model: The ONNX model.
    """

    def __init__(self, program: Program, options: OnnxRuntime) -> None:
        self.program = program
        self.model = export_onnx(program)
        self._options = options
        try:
            self._session = open_session(self.model, options)
        except Exception as error:
            raise _refused(program, error) from error

    def __call__(self, *unnamed: object, **batch: Tensor) -> dict[str, Tensor]:
        """Run it; inputs and outputs as those of the Program, on the CPU."""
        if unnamed:
            raise unnamed_inputs(self.program.signature.input_names, call="compiled")
        self.program.signature.check(batch)
        try:
            return run_session(self._session, batch)
        except ProgramError as error:
            found = fault_of(self.program, batch)
            if found is None:
                raise
            raise found from error

    @property
    def runner(self) -> Callable[..., dict[str, Tensor]]:
        """What runs batches alone, without Program and ONNX model: a third of the memory."""
        session = self._session
        return lambda **batch: run_session(session, batch)

    def trace(
        self, batch: Mapping[str, Tensor], nodes: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the values of the nodes named, or of all calls, by the Program's node names.

        The graph is translated again with these nodes as outputs. ONNX Runtime does not fuse what
        it has to show: to look at fused kernels, ask for few nodes.
        """
        known = tappable(self.program)
        names = [name for name in known if nodes is None or name in nodes]
        tapped = self.program.copy()
        rewriter = Rewriter(tapped, "trace")
        by_name = {node.name: node for node in tapped.graph.nodes}
        for name in self.program.signature.outputs:
            rewriter.drop_output(name)
        for name in names:
            rewriter.set_output(f"tap.{name}", by_name[name])
        rewriter.finish()
        if not names:
            return {}
        values = run_session(open_session(export_onnx(tapped), self._options), batch)
        return {name: values[f"tap.{name}"] for name in names}

    def cost(self) -> CostReport:
        """Measure the time of each node that ONNX Runtime runs, with its own profiler."""
        options = self._options
        signature = self.program.signature
        asked = signature.taken(options.batch, options.sequence)
        batch = signature.example(signature.sizes(*asked))
        with tempfile.TemporaryDirectory() as folder:
            prefix = os.path.join(folder, "profile")
            session = open_session(self.model, options, profile=prefix)
            for _ in range(options.repeats + 1):
                run_session(session, batch)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        rows = _rows(events, options.repeats)
        note = (
            f"ONNX Runtime {version('onnxruntime')} on {platform.machine()}, "
            f"{options.threads or 'all'} threads, batch {asked[0]}, sequence {asked[1]}, "
            f"mean of {options.repeats} runs after a warm-up"
        )
        return CostReport("measured", rows, (note,))

    def listing(self) -> str:
        """Return the nodes of the ONNX graph as text, one a line."""
        return "".join(f"{_node_text(node)}\n" for node in self.model.graph.node)

    def save(self, path: str | Path) -> Path:
        """Write the ONNX file to ``path`` (in a folder: ``model.onnx``) and return its path.

        The file is written beside its place and moved there, so that none is ever cut.
        """
        path = Path(path)
        path = path / "model.onnx" if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as beside:
            beside.write_bytes(self.model.SerializeToString(deterministic=True))
        return path


def open_session(model: ModelProto, options: OnnxRuntime, *, profile: str = "") -> Any:
    """Return a session of ONNX Runtime for a model."""
    need("onnx", who=OnnxRuntime.name)
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 4  # errors are raised, and need not be printed too
    if not options.optimize:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not _has_exact_integer_sums():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    return runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _has_exact_integer_sums() -> bool:
    """Return whether u8 x s8 kernels are exact on this CPU: on all but x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").lower()
    except OSError:
        return False
    return "vnni" in flags


def run_session(session: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all outputs of a session for a batch; tensors that it does not take are left out.

    Raises:
        ProgramError: ONNX Runtime refuses them.
    """
    wanted = {value.name for value in session.get_inputs()}
    feeds = {n: t.detach().cpu().contiguous().numpy() for n, t in batch.items() if n in wanted}
    names = [value.name for value in session.get_outputs()]
    try:
        found = session.run(names, feeds)
    except Exception as error:
        raise ProgramError(f"ONNX Runtime failed: {error}", who=OnnxRuntime.name) from error
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def _rows(events: list[dict[str, Any]], repeats: int) -> tuple[CostRow, ...]:
    """Return one row for each node, from the events of ``repeats`` runs after the first."""
    seconds: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            seconds[name].append(event["dur"] * 1e-6)
            ops[name] = event["args"]["op_name"]
    return tuple(
        CostRow(name, ops[name], {"seconds": sum(values[-repeats:]) / repeats})
        for name, values in seconds.items()
    )


def _node_text(node: Any) -> str:
    from onnx import helper

    attributes = ", ".join(
        f"{a.name}={helper.get_attribute_value(a)!r}"
        for a in node.attribute
        if a.type not in (a.TENSOR, a.GRAPH)
    )
    called = f"{node.op_type}({', '.join(node.input)})"
    text = f"{', '.join(node.output)} = {called}"
    return f"{text} {{{attributes}}}" if attributes else text
