"""Shapes and dtypes of every node, with dynamic dimensions kept as names.

The facts live in ``node.meta["val"]`` as fake tensors, which is where every tool of the FX world
looks for them. They are only a cache: :meth:`Shapes.infer` makes them anew from the signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from sparsefx.errors import ProgramError
from sparsefx.signature import Dim, Signature

__all__ = ["ShapeFact", "Shapes"]

# Example sizes for dynamic dimensions: distinct, so that two dimensions are never taken for one,
# and unlike any size that models have, so that none is taken for a static dimension.
_HINTS = (3, 11, 19, 23, 29, 31, 37, 41)


@dataclass(frozen=True)
class ShapeFact:
    """The type of one node's value; a dynamic dimension is a name or an expression of names."""

    dtype: torch.dtype
    dims: tuple[Dim, ...]


class Shapes:
    """Shape inference for one graph: fake inputs with one symbol for each dynamic dimension."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._mode = FakeTensorMode(
            shape_env=ShapeEnv(duck_shape=True), allow_non_fake_inputs=False
        )
        self._constants: dict[int, tuple[torch.Tensor, FakeTensor]] = {}
        self._names: dict[str, str] = {}
        self._inputs = self._make_inputs()

    def _make_inputs(self) -> dict[str, FakeTensor]:
        names = sorted({d for spec in self._signature.inputs for d in spec.dims if type(d) is str})
        hints = dict(zip(names, _HINTS, strict=False))
        if len(names) > len(_HINTS):
            raise ProgramError(
                f"{len(names)} dynamic dimensions ({', '.join(names)}); "
                f"at most {len(_HINTS)} are supported",
                who="signature",
            )
        inputs = {}
        for spec in self._signature.inputs:
            example = torch.empty(
                [hints[d] if isinstance(d, str) else d for d in spec.dims], dtype=spec.dtype
            )
            dynamic = [
                DimDynamic.DUCK if isinstance(d, str) else DimDynamic.STATIC for d in spec.dims
            ]
            fake = self._mode.from_tensor(
                example,
                source=ConstantSource(spec.name),
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic),
            )
            inputs[spec.name] = fake
            for size, dim in zip(fake.shape, spec.dims, strict=True):
                if isinstance(dim, str):
                    self._names[str(size)] = dim
        return inputs

    def infer(self, module: fx.GraphModule) -> None:
        """Fill ``node.meta["val"]`` of every node of ``module``.

        Raises:
            ProgramError: When an operator refuses its inputs; names the node.
        """
        for node in module.graph.nodes:
            self.infer_node(module, node)

    def infer_node(self, module: fx.GraphModule, node: fx.Node) -> None:
        """Fill ``node.meta["val"]`` from the values of the node's inputs."""
        if node.op == "placeholder":
            node.meta["val"] = self._inputs[str(node.target)]
        elif node.op == "get_attr":
            node.meta["val"] = self._constant(_attribute(module, str(node.target)))
        elif node.op == "call_module":
            node.meta["val"] = True
        elif node.op == "call_function":
            node.meta["val"] = self._call(node)

    def _constant(self, tensor: torch.Tensor) -> FakeTensor:
        cached = self._constants.get(id(tensor))
        if cached is None or cached[0] is not tensor:
            with torch.no_grad():
                fake = self._mode.from_tensor(tensor.detach(), static_shapes=True)
            cached = self._constants[id(tensor)] = (tensor, fake)
        return cached[1]

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        try:
            with self._mode, torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]  # call_function
        except Exception as error:
            raise ProgramError(
                f"{node.target} refuses its inputs: {error}", who="shapes", where=f"%{node.name}"
            ) from error

    def fact(self, node: fx.Node) -> ShapeFact | None:
        """Return dtype and dimensions of a node, or None when its value is not a tensor."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        return ShapeFact(value.dtype, tuple(self._dim(size) for size in value.shape))

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        text = str(size)
        for symbol, name in self._names.items():
            text = text.replace(symbol, name)
        return int(text) if text.isdigit() else text


def _attribute(module: torch.nn.Module, target: str) -> torch.Tensor:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # lint holds it to be a tensor
