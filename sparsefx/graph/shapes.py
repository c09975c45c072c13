"""Shapes and dtypes of every node, with dynamic dimensions kept as names.

The facts live in ``node.meta["val"]`` as fake tensors, which is where every tool of the FX world
looks for them. They are only a cache: :meth:`Shapes.infer` makes them anew from the signature.
"""

from __future__ import annotations

import copy
import logging
import operator
import re
import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._pytree import tree_map_only

from sparsefx.errors import ProgramError
from sparsefx.inputs.signature import Dim, InputSpec, Signature, format_type

__all__ = ["ShapeFact", "Shapes", "is_wired_as", "static_size", "wiring"]

_TORCH = logging.getLogger("torch._subclasses.fake_tensor")

# Example sizes for dynamic dimensions: distinct, so that two dimensions are never taken for one,
# and unlike any size that models have, so that none is taken for a static dimension.
_HINTS = (3, 11, 19, 23, 29, 31, 37, 41)


@dataclass(frozen=True)
class ShapeFact:
    """The type of one node's value; a dynamic dimension is a name or an expression of names."""

    dtype: torch.dtype
    dims: tuple[Dim, ...]


class _Symbols(ShapeEnv):
    """Symbols that do not note which line of a program asked for them.

    To find that line torch imports hundreds of modules more, which takes longer than the inference
    of a whole encoder.
    """

    def _get_user_frame(self) -> None:
        return None


class Shapes:
    """Shape inference for one graph: fake inputs with one symbol for each dynamic dimension."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._environment = _Symbols()
        self._mode = FakeTensorMode(shape_env=self._environment, allow_non_fake_inputs=False)
        # Results are kept by `call`; torch's own cache infers everything that it keeps twice.
        self._mode.cache_enabled = False
        self._constants: dict[Hashable, FakeTensor] = {}
        self._calls: dict[Hashable, Any] = {}
        self._names: dict[str, str] = {}
        self._inputs: dict[str, FakeTensor] = self._make_inputs()

    @classmethod
    def of_export(cls, signature: Signature, values: Mapping[str, FakeTensor]) -> Shapes:
        """Go on from what torch.export has inferred already.

        Args:
            signature: Signature of the Program.
            values: The fake tensor of each input.
        """
        shapes = cls.__new__(cls)
        shapes._signature = signature
        shapes._mode = next(iter(values.values())).fake_mode
        shapes._constants = {}
        shapes._calls = {}
        shapes._names = {}
        shapes._inputs = dict(values)
        for spec in signature.inputs:
            shapes._name_symbols(values[spec.name], spec.dims)
        return shapes

    def _make_inputs(self) -> dict[str, FakeTensor]:
        names = sorted({d for spec in self._signature.inputs for d in spec.dims if type(d) is str})
        hints = dict(zip(names, _HINTS, strict=False))
        if len(names) > len(_HINTS):
            raise ProgramError(
                f"{len(names)} dynamic dimensions ({', '.join(names)}); "
                f"at most {len(_HINTS)} are supported",
                who="signature",
            )
        sizes = {name: self._symbol(name, hint) for name, hint in hints.items()}
        inputs = {}
        for spec in self._signature.inputs:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
            with self._mode:
                fake: Any = torch.empty(shape, dtype=spec.dtype)
            inputs[spec.name] = fake
            self._name_symbols(fake, spec.dims)
        return inputs

    def _symbol(self, name: str, hint: int) -> torch.SymInt:
        # It brings torch's compilers, as ShapeEnv does: seconds for who infers no shapes.
        from torch._dynamo.source import ConstantSource

        source = ConstantSource(name)
        symbol = self._environment.create_symbol(hint, source, DimDynamic.DYNAMIC)
        found: Any = self._environment.create_symintnode(symbol, hint=hint, source=source)
        return found  # type: ignore[no-any-return]

    def with_input(self, spec: InputSpec) -> Shapes:
        """Return inference for the same graph with one more input.

        Raises:
            ProgramError: When it has a dynamic dimension that no other input has.
        """
        sizes = {dim: size for size, dim in self._sizes()}
        unknown = [dim for dim in spec.dims if isinstance(dim, str) and dim not in sizes]
        if unknown:
            raise ProgramError(
                f"no other input has the dynamic dimension {unknown[0]!r}",
                who="signature",
                where=spec.name,
            )
        wider = copy.copy(self)
        wider._signature = replace(self._signature, inputs=(*self._signature.inputs, spec))
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
        with self._mode:
            fake: Any = torch.empty(shape, dtype=spec.dtype)
        wider._inputs = {**self._inputs, spec.name: fake}
        return wider

    def _sizes(self) -> Iterator[tuple[int | torch.SymInt, Dim]]:
        for spec in self._signature.inputs:
            yield from zip(self._inputs[spec.name].shape, spec.dims, strict=True)

    def _name_symbols(self, fake: FakeTensor, dims: tuple[Dim, ...]) -> None:
        for size, dim in zip(fake.shape, dims, strict=True):
            if isinstance(dim, str):
                self._names[str(size)] = dim

    def infer(self, module: fx.GraphModule, *, missing: bool = False) -> None:
        """Fill ``node.meta["val"]`` of every node of ``module``, or only where it is missing.

        Raises:
            ProgramError: When an operator refuses its inputs; names the node.
        """
        for node in module.graph.nodes:
            if not (missing and "val" in node.meta):
                self.infer_node(module, node)
            elif node.op == "call_function":
                self._learn(node)

    def infer_node(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Fill ``node.meta["val"]`` from the values of the node's inputs."""
        if node.op == "placeholder":
            node.meta["val"] = self._inputs[str(node.target)]
        elif node.op == "get_attr":
            node.meta["val"] = self._constant(_attribute(module, str(node.target)))
        elif node.op == "call_module":
            node.meta["val"] = True
        elif node.op == "call_function":
            node.meta["val"] = self.call(node)

    def _constant(self, tensor: torch.Tensor) -> FakeTensor:
        key = (tensor.dtype, tensor.shape, tensor.stride())
        known = self._constants.get(key)
        if known is None:
            with self._mode:
                fake: Any = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device
                )
            known = self._constants[key] = fake
        return known

    def call(self, node: fx.Node) -> Any:
        """Return what a call gives for the recorded values of its inputs, as fake tensors.

        Calls of one operator on equal types give the same object: the layers of an encoder repeat
        each other, and an operator takes a hundred times as long as the look-up.

        Raises:
            ProgramError: When the operator refuses its inputs.
        """
        args, kwargs = self._recorded(node)
        key = _call_key(node.target, args, kwargs)
        if key in self._calls:
            return self._calls[key]
        try:
            # Some operators compute shapes in Python, where sizes with names need its dispatcher.
            with _told_once(), enable_python_dispatcher(), self._mode, torch.no_grad():
                if _writes(node.target):  # the recorded values are those of other nodes too
                    args, kwargs = tree_map_only(FakeTensor, torch.Tensor.detach, (args, kwargs))
                result = node.target(*args, **kwargs)  # type: ignore[operator]  # call_function
        except Exception as error:
            raise ProgramError(
                f"{node.target} refuses its inputs: {error}", who="shapes", where=f"%{node.name}"
            ) from error
        self._remember(key, result)
        return result

    def _recorded(self, node: fx.Node) -> tuple[Any, Any]:
        """Return the arguments of a call with the recorded value of each node."""
        device = self._device

        def recorded(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return value.meta["val"]
            return device if isinstance(value, torch.device) else value

        found: tuple[Any, Any] = fx.node.map_aggregate((node.args, node.kwargs), recorded)
        return found

    @property
    def _device(self) -> torch.device:
        """Where all fake tensors are said to be: no shape depends on where the Program is."""
        return next((fake.device for fake in self._inputs.values()), torch.device("cpu"))

    def _learn(self, node: fx.Node) -> None:
        """Take over what a node's value was inferred to be by torch.export."""
        self._remember(_call_key(node.target, *self._recorded(node)), node.meta["val"])

    def _remember(self, key: Hashable, result: Any) -> None:
        if key is not None and self._is_settled(result):
            self._calls.setdefault(key, result)

    def _is_settled(self, value: Any) -> bool:
        """Whether a value's sizes follow from the inputs' types: no size depends on values."""
        if isinstance(value, torch.Tensor):
            return all(map(self._is_settled, value.shape))
        if isinstance(value, (list, tuple)):
            return all(map(self._is_settled, value))
        if isinstance(value, torch.SymInt):
            return {*map(str, value.node.expr.free_symbols)} <= self._names.keys()
        return isinstance(value, int)

    def fact(self, node: fx.Node) -> ShapeFact | None:
        """Return dtype and dimensions of a node, or None when its value is not a tensor."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        return ShapeFact(value.dtype, tuple(self._dim(size) for size in value.shape))

    def agree(self, first: Any, second: Any) -> bool:
        """Whether two recorded values have one dtype and, for every choice of sizes, one shape.

        Lists are compared item by item; what holds no tensor agrees with its like. Sizes that
        depend on tensor values are taken to agree.
        """
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            alike = first.dtype == second.dtype and first.dim() == second.dim()
            return alike and all(map(self._same_size, first.shape, second.shape))
        if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
            return len(first) == len(second) and all(map(self.agree, first, second))
        kinds = (torch.Tensor, list, tuple)
        return not isinstance(first, kinds) and not isinstance(second, kinds)

    def _same_size(self, first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
        if self._dim(first) == self._dim(second):
            return True
        known = set(self._names)
        for size in (first, second):
            if not isinstance(size, int) and {*map(str, size.node.expr.free_symbols)} - known:
                return True
        # Texts of equal expressions can differ; two unlike choices of sizes tell them apart.
        names = sorted(set(self._names.values()))
        return all(
            self.size(first, sizes) == self.size(second, sizes)
            for sizes in (
                {name: start + step * index for index, name in enumerate(names)}
                for start, step in ((6, 5), (16, 3))
            )
        )

    def describe(self, value: Any) -> str:
        """Return a recorded value as text, e.g. ``float32[batch, sequence, 384]``."""
        if isinstance(value, torch.Tensor):
            return format_type(value.dtype, tuple(self._dim(size) for size in value.shape))
        if isinstance(value, (list, tuple)):
            return f"({', '.join(self.describe(item) for item in value)})"
        return "no tensor"

    def size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """Return a size for a choice of dynamic dimensions, e.g. ``{"batch": 1, "sequence": 128}``.

        Raises:
            ProgramError: When a dynamic dimension has no value, or values decide about the size.
        """
        if (known := static_size(size)) is not None:
            return known
        expression = size.node.expr  # type: ignore[union-attr]  # a SymInt, by the line above
        names = {symbol: self._names.get(str(symbol)) for symbol in expression.free_symbols}
        if None in names.values():
            raise ProgramError(
                f"the size {size} follows from values, not from sizes of the inputs alone",
                who="shapes",
                hint="such a size is known only when it runs: export a model without it",
            )
        missing = sorted(str(name) for name in names.values() if name not in sizes)
        if missing:
            raise ProgramError(
                f"the size of {', '.join(missing)} is needed",
                who="shapes",
                hint=f"dynamic dimensions: {', '.join(sorted(self._names.values()))}",
            )
        return int(expression.subs({symbol: sizes[str(name)] for symbol, name in names.items()}))

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if (known := static_size(size)) is not None:
            return known
        text = re.sub(r"\w+", lambda found: self._names.get(found[0], found[0]), str(size))
        return int(text) if text.isdigit() else text


@contextmanager
def _told_once() -> Iterator[None]:
    """Keep torch, in this thread, from logging the traceback of what it raises as well."""
    thread = threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.exc_info is None or record.thread != thread

    _TORCH.addFilter(wanted)
    try:
        yield
    finally:
        _TORCH.removeFilter(wanted)


def _call_key(target: object, args: Any, kwargs: Mapping[str, Any]) -> Hashable:
    """Return what the type of a call's result depends on; None when that has no key."""
    if _writes(target):
        return None
    key = (target, _type_key(args), tuple((k, _type_key(v)) for k, v in kwargs.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _writes(target: object) -> bool:
    """Whether an operator changes its inputs, their shape included."""
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _type_key(value: Any) -> Hashable:
    if isinstance(value, FakeTensor):
        sizes = (*value.shape, *value.stride())
        return (value.dtype, value.device, value.constant, *map(_type_key, sizes))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.expr  # type: ignore[no-any-return]  # a sympy expression
    if isinstance(value, (list, tuple)):
        return tuple(map(_type_key, value))
    return type(value), value  # True, 1 and 1.0 are equal


def wiring(node: fx.Node) -> tuple[object, ...]:
    """Return the objects that the value of a node was inferred from: call and recorded inputs."""
    values = (source.meta.get("val") for source in node.all_input_nodes)
    return (node.target, node.args, node.kwargs, *values)


def is_wired_as(node: fx.Node, known: tuple[object, ...] | None) -> bool:
    """Whether a node calls the same with the same inputs as when ``known`` was taken."""
    now = wiring(node)
    return known is not None and len(now) == len(known) and all(map(operator.is_, now, known))


def static_size(size: int | torch.SymInt) -> int | None:
    """Return a size as a number, also when a symbol turned out to have only one value."""
    if isinstance(size, int):
        return size
    return int(size) if size.node.expr.is_number else None


def _attribute(module: torch.nn.Module, target: str) -> torch.Tensor:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # lint holds it to be a tensor
