"""``torch.compile(model, backend="sparsefx")``: an encoder in eval mode runs on a target.

Dynamo hands over a graph in which parameters, buffers and sizes are inputs. They become attributes
and ``size`` calls again, the graph is captured like any other module, and the target lowers it.
A batch of a second shape makes Dynamo ask once more, then for dynamic sizes; later ones do not.
"""

from __future__ import annotations

import logging
import operator
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx import registry
from sparsefx.errors import TargetError
from sparsefx.frontend.capture import capture
from sparsefx.target import Compiled, Target

__all__ = ["backend"]

logger = logging.getLogger(__name__)

_WHO = "torch.compile"
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)


_MOST_MODELS = 4
"""Of one class that stay lowered; each holds its weights twice."""


@dataclass(frozen=True)
class _Lowered:
    """A lowered graph, and the weights that it was lowered with."""

    versions: list[int]
    held: list[Tensor]
    compiled: Compiled


def backend(
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, str] | None = None,
) -> Callable[..., tuple[Tensor, ...]]:
    """Lower a graph that Dynamo captured; torch finds this function by its entry point.

    The weights are those of the call: it lowers anew when one was written to, or put elsewhere,
    since. Writes through ``.data`` are not seen. It is for inference, and gradients do not flow.

    Args:
        module: Returns a tuple of tensors.
        examples: A value for each of its inputs.
        options: ``{"target": "cpu{threads=1}"}`` chooses another target than ``cpu``.

    Raises:
        TargetError: In training mode, or for options and outputs that it cannot take.
    """
    chosen = dict(options or {})
    target = registry.parse_target(chosen.pop("target", "cpu"))
    if chosen:
        raise TargetError(
            f"there is no option {next(iter(chosen))!r}", who=_WHO, hint="options={'target': ...}"
        )
    _refuse_training(module)
    results = next(n for n in module.graph.nodes if n.op == "output").args[0]
    if not all(isinstance(result, fx.Node) for result in results):
        raise TargetError("the graph returns something else than tensors", who=_WHO)
    free = _free_inputs(module, examples)
    if not free:
        raise _cut(TargetError("the graph takes no tensor", who=_WHO))
    try:
        return _Lowering(module, examples, free, target)
    except TargetError as error:
        if any(not examples[place].is_floating_point() for place in free.values()):
            raise
        raise _cut(error) from error


class _Lowering:
    """What Dynamo calls in place of a graph.

    Args:
        module: The graph.
        examples: A value for each of its inputs.
        free: Names and places of the tensors that differ from call to call.
        target: What lowers it.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        examples: Sequence[Any],
        free: Mapping[str, int],
        target: Target,
    ) -> None:
        nodes = module.graph.find_nodes(op="placeholder")
        self._module = module
        self._free = free
        self._target = target
        self._examples = tuple(examples)
        self._inputs = {name: examples[place].detach() for name, place in free.items()}
        self._sizes = _dynamic_sizes({name: nodes[place] for name, place in free.items()})
        self._alike = _one_name(self._sizes, self._inputs)
        self._stored = [
            place
            for place, value in enumerate(examples)
            if isinstance(value, Tensor) and place not in free.values()
        ]
        self._lock = threading.Lock()
        # By the addresses of the weights, last used last: models of one class share a graph; and by
        # whether sizes that the examples have in common are equal.
        self._lowered = {(self._addresses(examples), True): self._lower(examples, alike=True)}

    def __call__(self, *values: Any) -> tuple[Tensor, ...]:
        """Compute the graph with the weights that are among ``values``."""
        with self._lock:
            alike = self._is_alike(values)
            key = (self._addresses(values), alike)
            known = self._lowered.pop(key, None)
            if known is None or known.versions != self._versions(values):
                logger.info("%s: the weights or sizes are others, lowering anew", _WHO)
                known = self._lower(values, alike=alike)
            self._lowered[key] = known
            if len(self._lowered) > _MOST_MODELS:
                del self._lowered[next(iter(self._lowered))]
        found = known.compiled(**{name: values[place] for name, place in self._free.items()})
        return tuple(found.values())

    def _is_alike(self, values: Sequence[Any]) -> bool:
        """Whether sizes are equal that are equal in the examples."""
        found = {
            (own, values[self._free[name]].shape[dim])
            for name, dims in self._alike.items()
            for dim, own in dims.items()
        }
        return len(found) == len({own for own, _ in found})

    def _lower(self, values: Sequence[Any], *, alike: bool) -> _Lowered:
        """Lower the graph for the shapes of the examples, with the weights among ``values``."""
        held, versions = [values[place] for place in self._stored], self._versions(values)
        now = dict(enumerate(self._examples)) | dict(zip(self._stored, held, strict=True))
        # Dynamo's fake tensors must not meet those of the capture.
        with torch._guards.tracing(None), torch.inference_mode(mode=False), torch.enable_grad():
            plain = _with_attributes(self._module, list(now.values()), self._free)
            sizes = self._alike if alike else self._sizes
            program = capture(plain, self._inputs, dynamic=sizes).eval()
            # Held by their memory, which so is not given to other weights under the same address.
            kept = [tensor.detach() for tensor in held]
            return _Lowered(versions, kept, self._target.compile(program))

    def _addresses(self, values: Sequence[Any]) -> tuple[int, ...]:
        """Where the weights lie."""
        return tuple(values[place].data_ptr() for place in self._stored)

    def _versions(self, values: Sequence[Any]) -> list[int]:
        """How often each weight was written to, where that is counted."""
        held = (values[place] for place in self._stored)
        return [0 if tensor.is_inference() else tensor._version for tensor in held]


def _cut(error: TargetError) -> TargetError:
    """The error of a graph that begins in the middle of a model, as it takes no ids."""
    cause = (
        "torch.compile gives a part of a model alone where the model's code leaves the graph "
        "(TORCH_LOGS=graph_breaks says where; output_attentions does that)"
    )
    hint = "; ".join(filter(None, (error.hint, cause)))
    return TargetError(error.why, who=error.who, where=error.where, hint=hint)


def _refuse_training(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target not in _DROPOUTS:
            continue
        arguments = [*node.args, *[None] * 3]
        training = node.kwargs.get("training", arguments[2])
        if training and node.kwargs.get("p", arguments[1]):
            raise TargetError(
                "the model is in training mode",
                who=_WHO,
                where=node.name,
                hint="call model.eval() first; to train a compressed model, train its Program",
            )


def _free_inputs(module: fx.GraphModule, examples: Sequence[Any]) -> dict[str, int]:
    """Names and places of the tensors that differ from call to call."""
    free = {}
    nodes = module.graph.find_nodes(op="placeholder")
    for place, (node, value) in enumerate(zip(nodes, examples, strict=True)):
        if isinstance(value, Tensor) and not _is_stored(node, value):
            name = re.sub(r"^l_(kwargs_|args_)?|_+$", "", node.name)
            free[f"input_{name}" if name.isdigit() else name] = place
    return free


def _is_stored(node: fx.Node, value: Tensor) -> bool:
    """Whether an input is a parameter or buffer of the model."""
    marks = node.meta.get("tensor_dict", {})
    return isinstance(value, nn.Parameter) or "_dynamo_static_input_type" in marks


def _with_attributes(
    module: fx.GraphModule, examples: Sequence[Any], free: Mapping[str, int]
) -> fx.GraphModule:
    """The module with stored tensors as attributes, and sizes read off its inputs."""
    graph = fx.Graph()
    root = nn.Module()
    for name, child in module.named_children():
        root.add_module(name, child)
    old = module.graph.find_nodes(op="placeholder")
    new: dict[fx.Node, Any] = {old[place]: graph.placeholder(name) for name, place in free.items()}
    symbols = {
        str(size): (new[old[place]], dim)
        for place in free.values()
        for dim, size in enumerate(old[place].meta["example_value"].shape)
        if isinstance(size, torch.SymInt)
    }
    for number, (node, value) in enumerate(zip(old, examples, strict=True)):
        if node in new:
            continue
        if isinstance(value, Tensor):
            name = f"stored_{number}"
            root.register_buffer(name, value.detach())
            new[node] = graph.get_attr(name)
            continue
        if not node.users:  # the stride of a slice, say
            new[node] = None
            continue
        symbol = str(node.meta["example_value"])
        if symbol not in symbols:
            raise TargetError(
                f"the number {symbol!r} is not a size of an input", who=_WHO, where=node.name
            )
        new[node] = graph.call_method("size", symbols[symbol])
    for node in module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(module)
        if isinstance(value, Tensor):
            root.register_buffer(str(node.target), value.detach())
    graph.output(graph.graph_copy(module.graph, new))
    return fx.GraphModule(root, graph).eval()


def _dynamic_sizes(nodes: Mapping[str, fx.Node]) -> dict[str, dict[int, str]]:
    """Which dimensions of each input Dynamo keeps open, with one name for one symbol."""
    found: dict[str, dict[int, str]] = {name: {} for name in nodes}
    named: dict[str, str] = {}
    for name, node in nodes.items():
        for dim, size in enumerate(node.meta["example_value"].shape):
            if not isinstance(size, torch.SymInt):
                continue
            own = f"{name}_{dim}"
            usual = {0: "batch", 1: "sequence"}.get(dim, own)
            free = usual not in named.values()
            found[name][dim] = named.setdefault(str(size), usual if free else own)
    return found


def _one_name(
    sizes: Mapping[str, Mapping[int, str]], inputs: Mapping[str, Tensor]
) -> dict[str, dict[int, str]]:
    """The dynamic sizes, with one name for those of a dimension that are equal in the inputs.

    Dynamo does not say that tokens and mask are one batch where nothing in the model asks for it,
    and targets leave out padding only where it is.
    """
    first: dict[tuple[int, int], str] = {}
    known: dict[str, str] = {}
    for name, dims in sizes.items():
        for dim, own in dims.items():
            known.setdefault(own, first.setdefault((dim, inputs[name].shape[dim]), own))
    return {name: {dim: known[own] for dim, own in dims.items()} for name, dims in sizes.items()}
