"""Files of a Program: graph.json, tensors.safetensors, manifest.json. Loading runs no code.

The manifest holds the SHA-256 of the other two files and is written last, so that a folder without
a manifest is a save that was cut off.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

import sparsefx
from sparsefx import registry
from sparsefx.errors import ArtifactError, RegistryError, SpecError
from sparsefx.graph.callables import callable_name, resolve_callable
from sparsefx.graph.ops import MODE, Mode
from sparsefx.inputs.signature import InputSpec, Signature, format_dtype
from sparsefx.passbase import Pass, Skip, check_properties
from sparsefx.program import HistoryEntry, Program
from sparsefx.properties import Property
from sparsefx.storage.files import check_files, file_hash, read_json, saving, take_place, write_json
from sparsefx.storage.places import MANIFEST, is_program, told_place

__all__ = ["FORMAT_VERSION", "check_free", "load_program", "save_program", "unnamed"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_GRAPH, _TENSORS = "graph.json", "tensors.safetensors"
_META = ("module", "by")


def save_program(program: Program, folder: Path) -> Path:
    """Write ``program`` to ``folder``, replacing what a former save left there.

    The files are written beside the folder and moved into place, so that an interrupted save
    leaves the former one whole.
    """
    check_free(folder)
    check_properties("program.properties", program.properties, "save")
    _tell_unnamed(program, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work, old = (
        folder.with_name(f".{folder.name}-{os.getpid()}-{part}") for part in ("new", "old")
    )
    shutil.rmtree(work, ignore_errors=True)  # of a killed process that had the same number
    work.mkdir()
    try:
        tensors = {name: t.detach().cpu() for name, t in program.named_tensors().items()}
        write_json(work / _GRAPH, _encode_program(program))
        with saving(folder):
            save_file({name: t.contiguous() for name, t in tensors.items()}, work / _TENSORS)
        shutil.copymode(work / _GRAPH, work / _TENSORS)  # safetensors lets the owner alone read
        write_json(work / MANIFEST, _manifest(program, work))
        take_place(work, folder, old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def check_free(folder: Path) -> None:
    """Refuse a place where no Program can be saved, before the work that makes one.

    Raises:
        ArtifactError: It is a file, holds other files, or lies where nothing can be written.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    written = folder.parent if nearest == folder else nearest
    why = ""
    if not nearest.is_dir():
        why = f"{nearest} is a file" if nearest != folder else "it is a file"
    elif nearest == folder and any(folder.iterdir()) and not is_program(folder):
        why = "the folder holds other files"
    elif not os.access(written, os.W_OK | os.X_OK):
        why = f"{written} cannot be written to"
    if why:
        raise ArtifactError(why, who="save", where=str(folder), hint="choose another folder")


def _tell_unnamed(program: Program, folder: Path) -> None:
    """Warn of active passes that the registry does not find, by which the folder is loaded."""
    for item, found in unnamed(program):
        cls = type(item).__name__
        logger.warning(
            "save: the active pass '%s' is no installed one%s: Program.load(%r, passes=[%s]) takes "
            "its class, an entry point names it for all (docs/writing-a-pass.md); to save a "
            "Program that trains no more, set program.active = ()",
            item,
            ", and another has its name" if found else "",
            str(folder),
            cls,
        )


def unnamed(program: Program) -> Iterator[tuple[Pass, type[Pass] | None]]:
    """Yield the active passes that the registry does not find, and what it finds by their names."""
    for item in program.active:
        try:
            found = registry.pass_class(item.name)
        except RegistryError:
            found = None
        if found is not type(item):
            yield item, found


def load_program(folder: Path, passes: Iterable[type[Pass]] = ()) -> Program:
    """Read a folder that :func:`save_program` wrote.

    Args:
        folder: The folder.
        passes: Classes of active passes that no installed package names.

    Raises:
        ArtifactError: When a file is missing, cut, altered or of another version, or an active
            pass is not known.
    """
    given = _classes_of(passes)
    missing = "this is not a saved Program, or the save was cut"
    if not is_program(folder):
        kind, hint = told_place(folder)
        raise ArtifactError(f"{missing}: {kind}", who="load", where=str(folder), hint=hint)
    check_files(folder / MANIFEST, FORMAT_VERSION, (_GRAPH, _TENSORS), missing)
    try:
        tensors = load_file(folder / _TENSORS)
        found = read_json(folder / _GRAPH, "")
        program = _decode_program(found, tensors)
        active: list[str] = found["active"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the files do not fit together: {error}", who="load", where=str(folder)
        ) from error
    program.active = tuple(_read_active(text, given, folder) for text in active)
    return program


def _classes_of(passes: object) -> tuple[type[Pass], ...]:
    if isinstance(passes, Iterable):
        found = tuple(passes)
        if all(isinstance(each, type) and issubclass(each, Pass) for each in found):
            return found
    why = f"expected a list of classes of passes, got {passes!r}"
    raise ArtifactError(why, who="load", where="passes", hint="passes=[MyPass]")


def _read_active(text: str, given: Iterable[type[Pass]], folder: Path) -> Pass:
    try:
        return registry.parse_passes(text, given)[0]
    except SpecError as error:
        name = text.partition("{")[0]
        hint = (
            f"Program.load(folder, passes=[...]) takes the class of {name!r}, where that is a pass "
            "of a script; else install the package that has it"
        )
        raise ArtifactError(
            f"'{text}', which was active when it was saved, cannot be made: {error.why}",
            who="load",
            where=str(folder / _GRAPH),
            hint=hint,
        ) from error


def _manifest(program: Program, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "sparsefx": sparsefx.__version__,
        "torch": torch.__version__,
        "fingerprint": program.fingerprint(),
        "sha256": {name: file_hash(folder / name) for name in (_GRAPH, _TENSORS)},
    }


# -- Program <-> JSON ------------------------------------------------------------------------------


def _encode_program(program: Program) -> dict[str, Any]:
    signature = program.signature
    return {
        "inputs": [
            {"name": spec.name, "dtype": format_dtype(spec.dtype), "dims": list(spec.dims)}
            for spec in signature.inputs
        ],
        "outputs": list(signature.outputs),
        "conditions": list(signature.conditions),
        "nodes": [_encode_node(node) for node in program.graph.nodes],
        "parameters": {
            name: parameter.requires_grad for name, parameter in program.module.named_parameters()
        },
        "properties": sorted(prop.value for prop in program.properties),
        "active": [str(item) for item in program.active],
        "steps": program.steps,
        "training": program.training,
        "ties": [list(group) for group in program.ties],
        "config": program.config,
        "history": [
            {
                "spec": entry.spec,
                "applied": entry.applied,
                "skipped": [[skip.where, skip.reason] for skip in entry.skipped],
                "notes": list(entry.notes),
                "changed": entry.changed,
                "fingerprint": entry.fingerprint,
            }
            for entry in program.history
        ],
    }


def _decode_program(found: dict[str, Any], tensors: dict[str, Tensor]) -> Program:
    inputs = tuple(
        InputSpec(item["name"], _dtype(item["dtype"]), tuple(item["dims"]))
        for item in found["inputs"]
    )
    module = _assemble(_decode_graph(found["nodes"]), tensors, found["parameters"])
    program = Program(
        module,
        # Files of before there were conditions have none.
        Signature(inputs, tuple(found["outputs"]), tuple(found.get("conditions", ()))),
        config=found["config"],
        ties=tuple(tuple(group) for group in found["ties"]),
    )
    program.properties = frozenset(Property(value) for value in found["properties"])
    program.steps = found["steps"]
    program.history = tuple(
        HistoryEntry(
            item["spec"],
            item["applied"],
            tuple(Skip(where, reason) for where, reason in item["skipped"]),
            tuple(item["notes"]),
            item["changed"],
            item["fingerprint"],
        )
        for item in found["history"]
    )
    return program.train(found["training"])


def _assemble(
    graph: fx.Graph, tensors: dict[str, Tensor], parameters: dict[str, bool]
) -> fx.GraphModule:
    root: dict[str, Any] = {MODE: Mode()}
    for name, tensor in tensors.items():
        # In the file they begin anywhere, and matrix products round otherwise where that is within
        # a cache line: a copy computes what the Program did that was saved.
        value = tensor.clone()
        root[name] = nn.Parameter(value, parameters[name]) if name in parameters else value
    module = fx.GraphModule(root, graph, class_name="SparsefxModule")
    for name in parameters:
        _move_last(module, name.split("."))
    return module


def _move_last(module: nn.Module, path: list[str]) -> None:
    """Move a parameter, and the modules that hold it, behind the others.

    Done for all it gives the order in which they were saved: an optimizer knows its parameters by
    their places, and GraphModule orders them by the depth of their names.
    """
    *modules, leaf = path
    for each in modules:
        module._modules[each] = module._modules.pop(each)
        module = module.get_submodule(each)
    module._parameters[leaf] = module._parameters.pop(leaf)


def _encode_node(node: fx.Node) -> dict[str, Any]:
    item: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        item["target"] = callable_name(node.target)
    elif node.op != "output":
        item["target"] = str(node.target)
    if node.op not in ("placeholder", "get_attr"):
        item["args"] = [_encode(arg) for arg in node.args]
        item["kwargs"] = {key: _encode(value) for key, value in node.kwargs.items()}
    item.update({key: node.meta[key] for key in _META if key in node.meta})
    return item


def _decode_graph(items: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in items:
        op, name = item["op"], item["name"]
        args = tuple(_decode(arg, nodes) for arg in item.get("args", []))
        kwargs = {key: _decode(value, nodes) for key, value in item.get("kwargs", {}).items()}
        if op == "placeholder":
            node = graph.placeholder(item["target"], default_value=None)
        elif op == "call_function":
            node = graph.create_node(op, resolve_callable(item["target"]), args, kwargs, name)
        elif op == "call_module" and item["target"] != MODE:
            raise ArtifactError(f"unknown module {item['target']!r}", who="load", where=name)
        elif op == "output":
            node = graph.output(args[0])
        else:
            node = graph.create_node(op, item["target"], args, kwargs, name)
        node.meta = {key: item[key] for key in _META if key in item}
        nodes[name] = node
    return graph


_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, float):
        return value if abs(value) < float("inf") else {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    for kind, cls in _NAMED.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ArtifactError(f"a graph argument {value!r} cannot be saved", who="save")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in inner.items()}
    if kind == "float":
        return float(inner)
    if kind == "device":
        return torch.device(inner)
    if kind == "slice":
        return slice(*(_decode(part, nodes) for part in inner))
    found = getattr(torch, inner)
    if not isinstance(found, _NAMED[kind]):
        raise ArtifactError(f"{inner!r} is not a {kind}", who="load")
    return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ArtifactError(f"{name!r} is not a dtype", who="load")
    return found
