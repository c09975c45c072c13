"""Turns the module that torch.export gives back into the clean graph of a Program.

What export leaves behind and a Program must not have: guards and metadata assertions, a fixed
training flag in every dropout, regions without gradients, in-place updates of counters, sums that
overwrite what shares memory with nothing, two nodes for one tied parameter.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree

from sparsefx.errors import CaptureError
from sparsefx.graph.effects import out_of_place, remove_dead_nodes, writes
from sparsefx.graph.memory import memory_span, overlaps
from sparsefx.graph.ops import MODE, Mode, dropout_rate
from sparsefx.joined import DISTILL_PREFIX, TEACHER_PREFIX

__all__ = ["Cleaned", "clean_graph"]

aten = torch.ops.aten
_DROPOUTS = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default}
_SDPA = aten.scaled_dot_product_attention.default
_LOWEST = torch.finfo(torch.bfloat16).min
_SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_REGIONS = {_SET_GRAD, torch.ops.higher_order.wrap_with_autocast}
_ENDS = {aten.detach.default, aten.detach_.default}
_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}


class Cleaned(NamedTuple):
    """What became of an exported graph.

    Attributes:
        module: The module of a Program.
        ties: The groups of names that are one parameter.
        overwrites: Whether what has a gradient is written while gradients are off (no_grad): it
            keeps the gradient that it had, in a graph it does not.
    """

    module: fx.GraphModule
    ties: tuple[tuple[str, ...], ...]
    overwrites: bool


def clean_graph(
    flat: fx.GraphModule, inputs: Sequence[str], outputs: Mapping[str, fx.Node], *, training: bool
) -> Cleaned:
    """Make the module of a Program.

    Args:
        flat: ``ExportedProgram.module()``.
        inputs: Names for its placeholders, in order.
        outputs: Name and node of every output.
        training: Whether it was surely exported in training mode.
    """
    ties = _tied_names(flat)
    training = training or any(_flag(node) for node in _nodes(flat))
    copier = _Copier(flat, {name: group[0] for group in ties for name in group}, training)
    placeholders = [node for node in flat.graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, inputs, strict=True):
        new = copier.graph.placeholder(name, default_value=None)
        copier.copied[node] = new
        copier.note(new, node.meta.get("val"))
    copier.start()
    copier.copy(flat)
    copier.graph.output({name: copier.copied[node] for name, node in outputs.items()})
    remove_dead_nodes(copier.graph)
    _compute_out_of_place(copier.graph, copier.values)
    return Cleaned(_assemble(flat, copier.graph), ties, copier.overwrites)


def _compute_out_of_place(graph: fx.Graph, values: Mapping[fx.Node, object]) -> None:
    """Compute into new tensors what is written into memory that no other node shares."""
    places = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        plain = out_of_place(node, values, places)
        if plain is None:
            continue
        node.target = plain
        behind = [user for user in node.args[0].users if places[user] > places[node]]
        for user in behind:
            user.replace_input_with(node.args[0], node)


class _Copier:
    """Copies the graph of an exported module, node by node, into a new graph."""

    def __init__(self, root: fx.GraphModule, canonical: Mapping[str, str], training: bool) -> None:
        self.graph = fx.Graph()
        self.copied: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, object] = {}
        self.overwrites = False
        self._with_gradient: set[fx.Node] = set()
        self._in_no_grad = False
        self._root = root
        self._canonical = canonical
        self._in_training = training
        self._tensors: dict[str, fx.Node] = {}

    def start(self) -> None:
        """Make the training flag and the tensors, which stand above everything that uses them."""
        self._training = self.graph.call_module(MODE)
        for node in self._root.graph.nodes:
            tensor = _read(self._root, node.target) if node.op == "get_attr" else None
            if isinstance(tensor, Tensor):
                name = self._canonical.get(node.target, node.target)
                if name not in self._tensors:
                    self._tensors[name] = self.graph.get_attr(name)
                self.copied[node] = self._tensors[name]
                self.note(self._tensors[name], tensor)

    def note(self, node: fx.Node, value: object) -> None:
        """Note the value of a new node, and whether gradients may flow through it."""
        self.values[node] = value
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() or leaf.is_complex() for leaf in leaves):
            return
        starts = node.op == "placeholder" or isinstance(value, nn.Parameter)
        goes_on = not self._with_gradient.isdisjoint(node.all_input_nodes)
        if starts or (goes_on and node.target not in _ENDS):
            self._with_gradient.add(node)

    def copy(self, module: fx.GraphModule) -> None:
        """Copy all nodes of ``module`` whose placeholders are already in ``copied``."""
        for node in module.graph.nodes:
            if node in self.copied or node.op == "output" or node.target in _ASSERTIONS:
                continue
            if node.op == "get_attr":
                self.copied[node] = _read(module, str(node.target))
            elif isinstance(node.target, HigherOrderOperator):
                self.copied[node] = self._inline(node)
            elif node.op == "call_function":
                self.copied[node] = self._copy_call(node)
            else:
                raise _unknown(node)

    def _inline(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Copy the body of a no_grad or autocast region in place of the call."""
        if node.target not in _REGIONS:
            raise _unknown(node)
        position = next(
            i
            for i, arg in enumerate(node.args)
            if isinstance(arg, fx.Node) and arg.op == "get_attr"
        )
        body = self.copied[node.args[position]]  # type: ignore[index]  # a node, by the line above
        names = [n for n in body.graph.nodes if n.op == "placeholder"]
        for name, arg in zip(names, node.args[position + 1 :], strict=True):
            self.copied[name] = self.copied[arg]  # type: ignore[index]  # regions take nodes alone
        outer = self._in_no_grad
        self._in_no_grad = outer or (node.target is _SET_GRAD and not node.args[0])
        self.copy(body)
        leaves, self._in_no_grad = self._in_no_grad and not outer, outer
        found = (self.copied[n] for n in _output(body))
        return tuple(self._detached(value) if leaves else value for value in found)

    def _detached(self, value: Any) -> Any:
        """End the gradients of a value that leaves a region without gradients."""
        if value not in self._with_gradient:
            return value
        new = self.graph.call_function(aten.detach.default, (value,))
        new.meta = dict(value.meta)
        self.note(new, self.values[value])
        return new

    def _copy_call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = self.copied[node.all_input_nodes[0]], node.args[1]
            if isinstance(source, tuple):  # the results of an inlined region
                return source[cast("int", index)]
        # What is off although the model trained follows no mode: the model says so.
        is_off = self._in_training and _flag(node) is False
        if is_off and node.target in _DROPOUTS:
            return self.copied[node.all_input_nodes[0]]
        new = self.graph.node_copy(node, lambda n: self.copied[n])
        new.meta = _short_meta(node)
        self.note(new, new.meta.get("val"))
        if self._in_no_grad and writes(new):
            self.overwrites |= not self._with_gradient.isdisjoint(new.all_input_nodes)
        if not is_off:
            _follow_mode(self.graph, new, self._training)
        _narrow_fill(new)
        return new


def _output(module: fx.GraphModule) -> Sequence[fx.Node]:
    result = next(n for n in module.graph.nodes if n.op == "output").args[0]
    return cast("Sequence[fx.Node]", result)


def _nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield all nodes, also those of regions."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


def _flag(node: fx.Node) -> bool | None:
    """Return what a dropout, or a batch norm with statistics, was told: whether it trains."""
    if node.target in _DROPOUTS:
        return bool(node.args[2])
    is_norm = node.target is aten.batch_norm.default and node.args[3] is not None
    return bool(node.args[5]) if is_norm else None


def _unknown(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"export left {node.op} {node.target!r} in the graph",
        who="capture",
        where=f"%{node.name}",
        hint="this model uses a feature of torch.export that a Program does not hold, such as "
        "control flow that depends on tensor values",
    )


def _tied_names(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that are one parameter; embeddings first, so they name it.

    Two parameters on exactly the same memory are one. A Program cannot hold two that share a part.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    alone: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        span = memory_span(tensor)
        key = (id(tensor),) if span is None else (*span, tensor.shape, tensor.stride())
        alone.setdefault(key, (name, tensor))
        groups.setdefault(key, []).append(name)
    for first, second in overlaps(dict(alone.values())):
        raise CaptureError(
            f"the parameters {first} and {second} share a part of their memory",
            who="capture",
            where=second,
            hint="hold the memory in one parameter and take its parts in forward",
        )
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _short_meta(node: fx.Node) -> dict[str, Any]:
    """Keep the value that export inferred and the module the node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    meta = {"module": path} if path and not path.startswith("_") else {}
    return {**meta, "val": node.meta["val"]} if "val" in node.meta else meta


def _follow_mode(graph: fx.Graph, node: fx.Node, training: fx.Node) -> None:
    """Make a dropout follow train() and eval() instead of the mode it was exported in."""
    if node.target in _DROPOUTS:
        node.args = (*node.args[:2], training)
    elif node.target is _SDPA and len(node.args) > 4 and node.args[4]:
        with graph.inserting_before(node):
            rate = graph.call_function(dropout_rate, (node.args[4], training))
            rate.meta = {key: text for key, text in node.meta.items() if key != "val"}
        node.args = (*node.args[:4], rate, *node.args[5:])
    elif _flag(node) is not None:
        node.args = (*node.args[:5], training, *node.args[6:])


def _narrow_fill(node: fx.Node) -> None:
    """Let masked scores be filled with a number that bf16 holds: autocast may make them bf16.

    A model asks for the lowest number of the type that it has while it runs; export asks once.
    """
    if node.target is not aten.masked_fill.Scalar:
        return
    scores, mask, value = node.args
    if isinstance(value, int | float) and -math.inf < value < _LOWEST:
        node.args = (scores, mask, _LOWEST)


def _assemble(flat: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    root = nn.Module()
    root.add_module(MODE, Mode())
    for node in graph.nodes:
        if node.op == "get_attr":
            _check_name(str(node.target))
            _attach(root, str(node.target), _read(flat, str(node.target)))
    module = fx.GraphModule(root, graph, class_name="SparsefxModule")
    module.graph.lint()
    return module


def _check_name(tensor: str) -> None:
    """Refuse what passes would take for a tensor of a distillation, and leave alone."""
    if tensor.startswith((TEACHER_PREFIX, DISTILL_PREFIX)):
        name = tensor.partition(".")[0]
        raise CaptureError(
            f"the model has a module {name!r}, a name that distill uses: no pass would touch it",
            who="capture",
            where=tensor,
            hint=f"rename self.{name}",
        )


def _read(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _attach(root: nn.Module, target: str, tensor: Tensor) -> None:
    """Copy ``tensor`` into ``root``, so that the captured model stays as it was."""
    *path, leaf = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    value = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, nn.Parameter(value, requires_grad=tensor.requires_grad))
    else:
        root.register_buffer(leaf, value)
