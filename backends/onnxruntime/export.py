"""From a Program to one ONNX file: explicit QuantizeLinear and DequantizeLinear, dynamic axes.

The graph is exported again by torch.export in evaluation mode, which makes every dropout vanish,
and translated by torch.onnx (opset 21). ``sparsefx::quantize`` becomes QuantizeLinear and
``sparsefx::dequantize`` DequantizeLinear, with int8 weights as initializers.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

import sparsefx
from sparsefx.errors import TargetError
from sparsefx.extras import need

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

    from sparsefx.program import Program

__all__ = ["OPSET", "export_onnx"]

OPSET = 21
_WHO = "onnxruntime"
_UINT8, _INT8 = 2, 3


def export_onnx(program: Program) -> ModelProto:
    """Translate ``program`` and check the result with onnx.

    Inputs, outputs and their dynamic dimensions are named as in the Program's signature;
    initializers have their state_dict names.

    Raises:
        DependencyError: When onnx or onnxscript is not installed.
        TargetError: When an operator has no translation; names what torch.onnx says.
    """
    need("onnx", who=_WHO)
    import onnx

    exported = _export_again(program)
    try:
        with _quiet():
            translated = torch.onnx.export(
                exported,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table=_translations(),
            )
    except Exception as error:
        raise TargetError(
            f"torch.onnx cannot translate the graph: {_last_line(error)}",
            who=_WHO,
            hint="unsupported() names what is known not to translate; this was not known",
        ) from error
    assert translated is not None
    model: ModelProto = translated.model_proto
    _tidy(model, program)
    _name_values(model.graph, program.signature.input_names, program.signature.outputs)
    _own_zero_points(model.graph)
    _name_dimensions(model.graph, program)
    onnx.checker.check_model(model, full_check=True)
    return model


def _export_again(program: Program) -> torch.export.ExportedProgram:
    sizes = {name: 2 + i for i, name in enumerate(_dynamic_names(program))}
    batch = program.signature.example(sizes)
    auto = torch.export.Dim.AUTO
    shapes = {
        spec.name: {i: auto for i, dim in enumerate(spec.dims) if isinstance(dim, str)}
        for spec in program.signature.inputs
    }
    with _quiet(), torch.no_grad():
        exported = torch.export.export(
            program.module.eval(), (), batch, dynamic_shapes=shapes, strict=False
        )
    _settle_layouts(exported.graph_module)
    return exported


def _settle_layouts(module: torch.fx.GraphModule) -> None:
    """Copy what attention gives, as the two halves of torch.onnx disagree on its strides.

    One makes a `view` of the `reshape` behind it, which the other refuses (T5). The copy becomes an
    Identity, which the optimizer drops.
    """
    aten, output = torch.ops.aten, module.graph.output_node()
    for node in module.graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
        with module.graph.inserting_after(node):
            copy = module.graph.call_function(aten.clone.default, (node,), layout)
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy, lambda user, own=copy: user not in (own, output))
    module.recompile()


def _dynamic_names(program: Program) -> list[str]:
    dims = {dim for spec in program.signature.inputs for dim in spec.dims if isinstance(dim, str)}
    return sorted(dims)


def _translations() -> dict[Any, Any]:
    """Return the translations of the operators that sparsefx adds to ATen."""
    from onnxscript import opset21 as op

    def quantize(
        x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int | None = None
    ) -> Any:
        kind = _UINT8 if qmin >= 0 else _INT8
        zero: Any = op.Cast(zero_point, to=kind)
        if axis is None:
            return op.QuantizeLinear(x, scale, zero)
        return op.QuantizeLinear(x, scale, zero, axis=axis)

    def dequantize(q: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
        zero: Any = op.CastLike(zero_point, q)
        if axis is None:
            return op.DequantizeLinear(q, scale, zero)
        return op.DequantizeLinear(q, scale, zero, axis=axis)

    ops = torch.ops.sparsefx
    return {ops.quantize.default: quantize, ops.dequantize.default: dequantize}


def _tidy(model: ModelProto, program: Program) -> None:
    """Drop stack traces, paths and intermediate types; say what made the file."""
    graph = model.graph
    for part in (model, graph, *model.functions, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del graph.value_info[:]
    model.producer_name = "sparsefx"
    model.producer_version = sparsefx.__version__
    graph.name = "program"
    for key, value in (
        ("fingerprint", program.fingerprint()),
        ("history", ",".join(entry.spec for entry in program.history)),
    ):
        model.metadata_props.add(key=key, value=value)


def _name_values(graph: GraphProto, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Give in- and outputs their names; other values that have them step aside.

    An input that is returned under its own name stands among both; under another it is copied.
    """
    import onnx

    renames = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        if node.input[0] in renames:  # a second name for an input, which torch.onnx may swap
            renames[node.output[0]] = renames[node.input[0]]
            graph.node.remove(node)
    held = {tensor.name for tensor in graph.initializer}
    copies = []
    for output, name in zip(graph.output, outputs, strict=True):
        if output.name not in held and output.name not in renames:
            renames[output.name] = name
        elif renames.get(output.name) != name:
            copies.append((output.name, name))
        output.name = name
    made = held.union(*(node.output for body in _bodies(graph) for node in body.node))
    taken = {*inputs, *outputs}
    renames |= {name: f"{name}_value" for name in made & taken if name not in renames}
    _rename(graph, renames)
    for source, name in copies:
        source = renames.get(source, source)
        graph.node.append(onnx.helper.make_node("Identity", [source], [name], name=name))


def _rename(graph: GraphProto, renames: dict[str, str]) -> None:
    """Rename values where they are read or written; the graph's outputs have their names by now."""
    for body in _bodies(graph):
        results = () if body is graph else body.output
        for value in (*body.input, *body.initializer, *results):
            value.name = renames.get(value.name, value.name)
        for node in body.node:
            for places in (node.input, node.output):
                for i, name in enumerate(places):
                    places[i] = renames.get(name, name)


def _bodies(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the bodies of its loops and branches, which read its values too."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _bodies(attribute.g)


def _own_zero_points(graph: GraphProto) -> None:
    """Give each weight its own zero point.

    The exporter lets them share one; ONNX Runtime then fails to load the model in the mode that
    keeps sums exact on CPUs without VNNI, as it rewrites the zero point of each weight.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    for node in weights:
        shared = held.get(node.input[2])
        if shared is None:
            continue
        own = f"{node.input[0]}_zero_point"
        if own not in held:
            copy = graph.initializer.add()
            copy.CopyFrom(shared)
            copy.name = own
            held[own] = copy
        node.input[2] = own
    used = {name for body in _bodies(graph) for node in body.node for name in node.input}
    used |= {output.name for body in _bodies(graph) for output in body.output}
    for tensor in list(graph.initializer):
        if tensor.name not in used:
            graph.initializer.remove(tensor)


def _name_dimensions(graph: GraphProto, program: Program) -> None:
    """Write the names of dynamic dimensions, e.g. ``batch``, into the types of in- and outputs."""
    dims = {spec.name: spec.dims for spec in program.signature.inputs}
    names: dict[str, str] = {}
    for value in graph.input:
        for place, dim in zip(value.type.tensor_type.shape.dim, dims[value.name], strict=True):
            if isinstance(dim, str):
                names.setdefault(place.dim_param, dim)
                place.dim_param = dim
    for value in graph.output:
        for place in value.type.tensor_type.shape.dim:
            if place.dim_param:
                symbols = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), place.dim_param)
                place.dim_param = symbols


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch.onnx says about packages that are missing and not needed."""
    chatty = logging.getLogger("torch.onnx._internal.exporter._registration")

    def drop(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    chatty.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.removeFilter(drop)


def _last_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
