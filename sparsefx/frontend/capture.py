"""Capture: a PyTorch model becomes a Program."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsefx.errors import CaptureError, did_you_mean
from sparsefx.frontend.agreement import check_agreement, named_outputs
from sparsefx.frontend.clean import clean_graph
from sparsefx.frontend.export import export
from sparsefx.frontend.guards import exported_conditions
from sparsefx.graph.memory import no_collection
from sparsefx.graph.shapes import Shapes, static_size
from sparsefx.inputs.signature import InputSpec, Signature
from sparsefx.program import Program

__all__ = ["capture"]

logger = logging.getLogger(__name__)

Dynamic = bool | Mapping[str, Mapping[int, str]]
_TOKENS = ("batch", "sequence")
_CHOICES = ("batch", "choices", "sequence")

_IN_KWARGS = (
    "torch.export takes inputs that forward names, none of its **kwargs: leave it out if the model "
    "does not read it, else capture a module whose forward names it and passes it on"
)


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Mapping[str, Tensor | None] | Sequence[Tensor] | Tensor | None = None,
    *,
    dynamic: Dynamic = True,
) -> Program:
    """Capture a model as a Program.

    Args:
        model: An ``nn.Module``, a Hugging Face model, an ``fx.GraphModule`` or an
            ``ExportedProgram``. It is not changed; the Program shares no tensor with it.
        example_inputs: The inputs by name, or in the order of ``forward``; the names become the
            inputs of the Program. Not needed for an ExportedProgram.
        dynamic: True makes dimension 0 of every input the dynamic ``batch`` and, for integer inputs
            of two or more dimensions and float masks of their shape, dimension 1 the dynamic
            ``sequence``. Where all of these have three, as for multiple choice, they are ``batch``,
            ``choices`` and ``sequence``. Where the examples have several sizes of one of these,
            there is ``sequence_2`` and so on, and a size of 1 stays as it is. A mapping such as
            ``{"pixels": {0: "batch"}}`` says so for each input; False makes all sizes fixed.

    Returns:
        A Program in the mode (train or eval) of the model; in eval mode when captured from an
        ExportedProgram. Both modes run from the same graph: dropout and batch norm follow the mode,
        and nothing else. It refuses sizes at which the model would take another way through its
        code than with the examples; a warning names them. Gradients end where the model switches
        them off (``torch.no_grad``); a warning names parameters whose gradients are others than the
        model's, since a graph holds no backward of the model's own and no hooks.

    Raises:
        CaptureError: When the model cannot be exported, or computes something else than its graph
            in evaluation mode; names the module, the reason, a way out.
    """
    if isinstance(model, ExportedProgram):
        return _from_exported(model)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected an nn.Module or an ExportedProgram, got {_kind_of(model)}",
            who="capture",
            hint="load the model first, e.g. with AutoModelForSequenceClassification"
            ".from_pretrained, or use sparsefx.huggingface.capture_pretrained(folder)",
        )
    if example_inputs is None:
        raise CaptureError(
            "example_inputs are needed",
            who="capture",
            hint="pass e.g. {'input_ids': ids, 'attention_mask': mask}",
        )
    inputs = _named_inputs(model, example_inputs)
    dims = _dynamic_dims(inputs, dynamic)
    # Copies: of one tensor that is given under two names, export would make one input.
    inputs = {name: _grow(name, value, dims[name]).clone() for name, value in inputs.items()}
    specs = tuple(
        InputSpec(name, value.dtype, tuple(dims[name].get(i, n) for i, n in enumerate(value.shape)))
        for name, value in inputs.items()
    )
    with no_collection():
        exported, doubts = export(model, inputs, dims)
        program, overwrites = _to_program(exported, specs, _config_of(model), given=False)
    doubts += ("writes while gradients are off",) * overwrites
    _require(program, check_agreement(model, program, inputs, doubts))
    return program.train(model.training)


def _kind_of(value: object) -> str:
    return repr(value) if isinstance(value, (str, Path)) else type(value).__name__


def _named_inputs(model: nn.Module, given: object) -> dict[str, Tensor]:
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        values = [given] if isinstance(given, Tensor) else list(given)  # type: ignore[call-overload]
        names = [p.name for p in inspect.signature(model.forward).parameters.values()]
        if len(values) > len(names):
            raise CaptureError(
                f"{len(values)} inputs for a forward that takes {len(names)}", who="capture"
            )
        named = dict(zip(names, values, strict=False))
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in named.items():
        if name not in parameters:
            raise CaptureError(
                f"forward of {type(model).__name__} names no input {name!r}",
                who="capture",
                where=name,
                hint=_IN_KWARGS if takes_any else did_you_mean(name, parameters),
            )
        if value is not None and not isinstance(value, Tensor):
            raise CaptureError(
                f"expected a tensor, got {type(value).__name__}",
                who="capture",
                where=name,
                hint="set switches on the model's config; only tensors are inputs of a graph",
            )
    return {name: value for name, value in named.items() if value is not None}


def _dynamic_dims(inputs: Mapping[str, Tensor], dynamic: Dynamic) -> dict[str, dict[int, str]]:
    if isinstance(dynamic, Mapping):
        for name in dynamic:
            if name not in inputs:
                raise CaptureError(
                    f"dynamic names the input {name!r}, which is not among the example inputs",
                    who="capture",
                    where=name,
                    hint=did_you_mean(name, inputs),
                )
            _check_dims(name, inputs[name].dim(), dynamic[name])
        _check_sizes(inputs, dynamic)
        return {name: dict(dynamic.get(name, {})) for name in inputs}
    if not dynamic:
        return {name: {} for name in inputs}
    return _usual_dims(inputs)


def _usual_dims(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Name dimensions by their places; two sizes in the examples are two dimensions."""
    places = [
        (name, place, label, inputs[name].shape[place])
        for name, labels in _labels(inputs)
        for place, label in enumerate(labels)
    ]
    sizes: dict[str, list[int]] = {}
    for _, _, label, size in places:
        sizes.setdefault(label, []).append(size)
    found: dict[str, dict[int, str]] = {name: {} for name in inputs}
    for name, place, label, size in places:
        others = [other for other in dict.fromkeys(sizes[label]) if other != 1]
        if size == 1 and others:  # it is repeated along the others, or has one entry for each text
            logger.warning(
                "capture: dimension %d of input %r stays 1, as %s is %d in another; if it is to "
                "differ from call to call, give dynamic=...",
                *(place, name, label, others[0]),
            )
            continue
        number = others.index(size) if others else 0
        found[name][place] = f"{label}_{number + 1}" if number else label
    return found


def _labels(inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name the dimensions of each input that usually differ from call to call."""
    tokens = [v.shape for v in inputs.values() if v.dim() >= 2 and not v.is_floating_point()]
    labels = _CHOICES if tokens and all(len(shape) == 3 for shape in tokens) else _TOKENS
    for name, value in inputs.items():
        is_tokens = value.shape in tokens and (not value.is_floating_point() or "mask" in name)
        yield name, labels[: value.dim() if is_tokens else min(value.dim(), 1)]


def _check_sizes(inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse one name for dimensions that the examples give several sizes."""
    first: dict[str, tuple[int, str]] = {}
    for name, dims in dynamic.items():
        for place, label in dims.items():
            size = inputs[name].shape[place]
            known, where = first.setdefault(label, (size, name))
            if size != known:
                raise CaptureError(
                    f"dynamic names dimension {place} {label!r}, of which the example has {size}, "
                    f"and {known} in {where}",
                    who="capture",
                    where=name,
                    hint="give dimensions that differ in size different names",
                )


def _check_dims(name: str, rank: int, dims: Mapping[int, str]) -> None:
    for dim, label in dims.items():
        if not isinstance(dim, int) or not 0 <= dim < rank:
            raise CaptureError(
                f"dynamic names dimension {dim!r} of {name!r}, which has {rank} dimensions",
                who="capture",
                where=name,
                hint=f"dimensions are counted from 0 to {rank - 1}, e.g. {{0: 'batch'}}",
            )
        if not isinstance(label, str) or not label.isidentifier() or iskeyword(label):
            kind = "a name as Python has them" if isinstance(label, str) else "a text"
            raise CaptureError(
                f"the name of dimension {dim} of {name!r} is {label!r}, not {kind}",
                who="capture",
                where=name,
                hint="name a dynamic dimension, e.g. {0: 'batch'}",
            )


def _grow(name: str, value: Tensor, dims: Mapping[int, str]) -> Tensor:
    """Repeat ``value`` along dynamic dimensions of size 1, which export would take for constant."""
    for dim in dims:
        if value.shape[dim] == 0:
            raise CaptureError(
                f"dimension {dim} of the example is empty: shape {tuple(value.shape)}",
                who="capture",
                where=name,
                hint="capture with one sequence of one token at least",
            )
        if value.shape[dim] == 1:
            value = torch.cat([value, value], dim)
    return value


def _from_exported(exported: ExportedProgram) -> Program:
    by_name = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    values: dict[str, Tensor] = {}
    for name in map(str, exported.graph_signature.user_inputs):
        value = by_name[name].meta.get("val") if name in by_name else None
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"the input {name!r} of the ExportedProgram is no tensor",
                who="capture",
                where=name,
                hint="export the model with tensors alone; set switches on its config",
            )
        values[name] = value
    names = _names_of_symbols(values)
    specs = tuple(
        InputSpec(
            name,
            value.dtype,
            tuple(
                size if isinstance(size, int) else names.get(str(size), f"{name}_{place}")
                for place, size in enumerate(value.shape)
            ),
        )
        for name, value in values.items()
    )
    program, _ = _to_program(exported, specs, {}, given=True)
    return program.eval()


def _names_of_symbols(values: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a name for each symbol among the sizes of exported inputs; one symbol has one name.

    The name that it was exported with, as long as export still knows it (a loaded file does not);
    else ``batch`` or ``sequence`` by where it stands first, when that is not taken.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        for place, size in enumerate(value.shape):
            if isinstance(size, int) or str(size) in found:
                continue
            given = _exported_name(size, f"L['{name}'].size()[{place}]")
            usual = dict(enumerate(_TOKENS)).get(place, "")
            taken = {"", *found.values()}
            choice = next((n for n in (given, usual) if n not in taken), f"{name}_{place}")
            found[str(size)] = choice
    return found


def _exported_name(size: torch.SymInt, source: str) -> str:
    known: Mapping[str, str] = getattr(size.node.shape_env, "source_name_to_debug_name", {})
    name = known.get(source, "")
    return name if name.isidentifier() and not name.startswith("_") else ""


def _to_program(
    exported: ExportedProgram,
    specs: tuple[InputSpec, ...],
    config: dict[str, Any],
    *,
    given: bool,
) -> tuple[Program, bool]:
    """Make the Program, and say whether it overwrites values while gradients are off.

    Args:
        exported: What it is made of.
        specs: Its inputs.
        config: The configuration of the model.
        given: Whether the user exported it, in whatever mode.
    """
    flat = exported.module(check_guards=False)
    results = next(n for n in flat.graph.nodes if n.op == "output").args[0]
    structured = pytree.tree_unflatten(list(results), exported.call_spec.out_spec)
    outputs = dict(named_outputs(structured, fx.Node))
    if not outputs:
        raise CaptureError("the model returns no tensor", who="capture", where="forward")
    clean = clean_graph(flat, [s.name for s in specs], outputs, training=not given)
    placeholders = [node for node in flat.graph.nodes if node.op == "placeholder"]
    values = {s.name: n.meta["val"] for s, n in zip(specs, placeholders, strict=True)}
    signature = Signature(tuple(_as_found(s, values[s.name]) for s in specs), tuple(outputs))
    shapes = Shapes.of_export(signature, values)
    shapes.infer(clean.module, missing=True)
    program = Program(clean.module, signature, config=config, ties=clean.ties, shapes=shapes)
    conditions, unknown = exported_conditions(exported, signature.inputs, values, bounds=given)
    for guard in unknown:
        logger.warning("capture: the graph is wrong where this is not so, unchecked: %s", guard)
    _require(program, conditions)
    return program, clean.overwrites


def _require(program: Program, conditions: Sequence[str]) -> None:
    """Let a Program refuse all sizes at which a condition does not hold, and say so."""
    signature = program.signature
    program.signature = replace(signature, conditions=(*signature.conditions, *conditions))
    if conditions:
        more = f" and {len(conditions) - 3} more (signature.conditions)" * (len(conditions) > 3)
        logger.warning(
            "capture: the graph holds for %s alone, since the model's code asks for sizes; the "
            "Program refuses all others",
            ", ".join(conditions[:3]) + more,
        )


def _as_found(spec: InputSpec, value: Tensor) -> InputSpec:
    """Return the input as export found it: a dimension that the model forces to a size is fixed."""
    dims = []
    for size, dim in zip(value.shape, spec.dims, strict=True):
        known = static_size(size)
        if known is not None and known != dim:
            logger.warning(
                "capture: %s of input %r is fixed at %d: the model takes no other size",
                dim,
                spec.name,
                known,
            )
        dims.append(dim if known is None else known)
    return InputSpec(spec.name, spec.dtype, tuple(dims))


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return {}
    found: dict[str, Any] = {**config.to_dict(), "architectures": [type(model).__name__]}
    return found
