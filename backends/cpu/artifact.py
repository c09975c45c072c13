"""The files of a compiled model, and what runs them: no graph, no torch, nothing to compile.

    FOLDER/                 the Program (see `sparsefx.storage`): to lower it on another machine
    FOLDER/cpu/plan.json    steps, buffers, inputs, outputs; the instruction set
    FOLDER/cpu/weights.bin  packed weights, each array at a multiple of 64 bytes; mapped, not read
    FOLDER/cpu/code/*.o     objects, each behind a signature made with the key of the user
    FOLDER/cpu/manifest.json    SHA-256 of plan and weights

A cut or altered file is refused. Machine code is loaded only if the same user signed it, else it
is compiled from the plan. The plan itself is data, but generated code follows it without asking:
the hashes find damage, not malice.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsefx
from sparsefx.backends.cpu.analyses.axes import Layout, arranged
from sparsefx.backends.cpu.codegen.driver import driver_text
from sparsefx.backends.cpu.codegen.engine import shared_engine
from sparsefx.backends.cpu.codegen.panel import WIDTHS
from sparsefx.backends.cpu.machine.isa import ISAS, Isa, obstacle, with_extras
from sparsefx.backends.cpu.machine.private import sign
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.indices import Rule, check_index, index_of
from sparsefx.backends.cpu.plan.plan import Buffer, Plan, Step, Word
from sparsefx.backends.cpu.runtime.in_process import InProcess
from sparsefx.backends.cpu.runtime.pool import shared_pool
from sparsefx.backends.cpu.runtime.runtime import Runtime
from sparsefx.errors import ArtifactError, ProgramError, misnamed_inputs, unnamed_inputs
from sparsefx.inputs.conditions import broken
from sparsefx.storage.files import check_files, file_hash, read_json, take_place, write_json
from sparsefx.storage.places import told_place

__all__ = ["Interface", "LoadedModel", "load", "write"]

FORMAT_VERSION = 6
_PART = "cpu"
_PLAN, _WEIGHTS, _MANIFEST, _CODE = "plan.json", "weights.bin", "manifest.json", "code"
_LINE = 64


@dataclass(frozen=True)
class Interface:
    """What a plan takes and gives, in terms of the model's inputs and outputs.

    Attributes:
        inputs: Names of the inputs, int [batch, sequence] each.
        outputs: Result of the plan for each output.
        indices: Rule for each index that the plan reads.
        padding: Input that is 0 at padding, or None.
        rows: Rows of the smallest table that each index reads.
        layouts: How the dimensions of each output lie in its result (see `axes`).
        dims: Batch and sequence: a size that is fixed, or the name of one that is not.
        conditions: What must be so of sizes with names.
        marks: Whether the input of padding was tried with 0 and 1 alone.
    """

    inputs: tuple[str, ...]
    outputs: dict[str, str]
    indices: dict[str, Rule]
    padding: str | None
    rows: dict[str, int]
    layouts: dict[str, list[Any]]
    dims: tuple[int | str, ...]
    conditions: tuple[str, ...]
    marks: bool


class LoadedModel(InProcess):
    """A compiled model without its graph; safe to call from several threads.

    Args:
        interface: How inputs become indices.
        runtime: The plan, ready to run.
    """

    def __init__(self, interface: Interface, runtime: Runtime) -> None:
        self.interface = interface
        self._runtime = runtime

    def __call__(self, *unnamed: object, **batch: Any) -> dict[str, NDArray[np.float32]]:
        """Run a batch of integer arrays (or tensors) [batch, sequence]; gives fp32 arrays.

        Raises:
            ProgramError: for inputs that do not fit the model.
        """
        if unnamed:
            raise unnamed_inputs(self.interface.inputs, call="compiled")
        interface = self.interface
        inputs = _checked(interface.inputs, batch)
        shape = next(iter(inputs.values())).shape
        _check_sizes(interface, shape)
        indices = {}
        for name, rule in interface.indices.items():
            index = index_of(rule, inputs)
            check_index(name, index, interface.rows[name])
            indices[name] = np.broadcast_to(index, shape).astype(np.int32)
        mask = np.ones(shape, np.bool_)
        if interface.padding is not None:
            mask = self._mask(interface.padding, inputs[interface.padding])
        results = self._runtime.run(mask, indices)
        return {
            name: arranged(results[result], Layout.decoded(interface.layouts[name]))
            for name, result in interface.outputs.items()
        }

    def _mask(self, name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
        """True for real tokens; a sequence without any keeps all."""
        mask: NDArray[np.bool_] = np.not_equal(values, 0)
        if self.interface.marks and not np.array_equal(values, mask):
            raise ProgramError(
                "it holds more than 0 and 1, by which the model may tell more than padding",
                who="cpu",
                where=name,
                hint="give 0 and 1, or run the Program of this folder",
            )
        mask[~mask.any(1)] = True
        if self._runtime.plan.picks and not mask[:, 0].all():
            raise ProgramError(
                "a sequence begins with padding, and the head reads its first token",
                who="cpu",
                where=name,
                hint="pad at the end, or run the Program of this folder: it computes padding",
            )
        return mask


def _checked(names: tuple[str, ...], batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The inputs as arrays, in the order of the model."""
    misnamed = misnamed_inputs(names, batch, who="cpu")
    if misnamed is not None:
        raise misnamed
    inputs = {name: _integers(name, batch[name]) for name in names}
    shapes = {array.shape for array in inputs.values()}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        listed = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        raise ProgramError(
            f"expected inputs of one shape [batch, sequence], got {listed}",
            who="cpu",
            where="inputs",
            hint="tokenizer(texts, padding=True, return_tensors='np') pads to one length",
        )
    if 0 in next(iter(shapes)):
        raise ProgramError(
            f"the batch is empty: {next(iter(shapes))}",
            who="cpu",
            where="inputs",
            hint="give at least one sequence of at least one token",
        )
    return inputs


def _integers(name: str, value: Any) -> NDArray[Any]:
    hint = "give a numpy array, or a tensor on the CPU, of integers [batch, sequence]"
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:
        why = f"expected an array of integers: {error}"
        raise ProgramError(why, who="cpu", where=name, hint=hint) from error
    if array.dtype.kind not in "iub":
        why = f"expected integers, got {array.dtype}"
        raise ProgramError(why, who="cpu", where=name, hint=hint)
    return array


def _check_sizes(interface: Interface, shape: tuple[int, ...]) -> None:
    """Refuse sizes that the model was not captured for."""
    places = ("batch", "sequence")
    sizes = dict(zip(places, shape, strict=True))
    dims = [*zip(places, interface.dims, shape, strict=True)]
    sizes |= {dim: size for _, dim, size in dims if isinstance(dim, str)}
    fixed = (f"{place} == {dim}" for place, dim, _ in dims if isinstance(dim, int))
    missed = broken((*fixed, *interface.conditions), sizes)
    if missed is not None:
        raise ProgramError(
            f"inputs of shape [batch, sequence] {shape}, but the model holds for {missed} alone",
            who="cpu",
            hint="shorten or pad them, or capture the model with examples of this size",
        )


# -- writing ---------------------------------------------------------------------------------------


def write(folder: Path, interface: Interface, runtime: Runtime) -> None:
    """Write plan, weights and code to the part `cpu` of a folder that holds the Program."""
    place = folder / _PART
    work, old = (folder / f".{_PART}-{os.getpid()}-{part}" for part in ("new", "old"))
    shutil.rmtree(work, ignore_errors=True)
    (work / _CODE).mkdir(parents=True)
    try:
        arrays = _write_weights(work / _WEIGHTS, runtime.plan)
        write_json(work / _PLAN, _encode(interface, runtime, arrays))
        _write_code(work / _CODE, runtime)
        hashes = {name: file_hash(work / name) for name in (_PLAN, _WEIGHTS)}
        write_json(
            work / _MANIFEST,
            {"format": FORMAT_VERSION, "sparsefx": sparsefx.__version__, "sha256": hashes},
        )
        take_place(work, place, old)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _arrays(plan: Plan) -> list[NDArray[Any]]:
    """The arrays of all steps, each once, in the order in which they are read."""
    found = {
        id(word): word
        for step in plan.steps
        for word in step.words.values()
        if isinstance(word, np.ndarray)
    }
    return list(found.values())


def _write_weights(path: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    """Write all arrays; gives where each lies, by id."""
    known: dict[int, dict[str, Any]] = {}
    with path.open("wb") as file:
        for number, array in enumerate(_arrays(plan)):
            file.write(b"\0" * (-file.tell() % _LINE))
            known[id(array)] = {
                "number": number,
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "start": file.tell(),
            }
            file.write(np.ascontiguousarray(array).data)
    return known


def _encode(
    interface: Interface, runtime: Runtime, arrays: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    plan = runtime.plan
    buffers = list(dict.fromkeys(b for step in plan.steps for b in step.buffers()))

    def word(value: Word) -> Any:
        if isinstance(value, Buffer):
            return {"buffer": buffers.index(value)}
        if isinstance(value, np.ndarray):
            return {"array": arrays[id(value)]["number"]}
        return value

    return {
        "isa": runtime.isa.name,
        "features": list(runtime.isa.features),
        "interface": vars(interface),
        "arrays": [{k: v for k, v in a.items() if k != "number"} for a in arrays.values()],
        "buffers": [[b.name, b.rows, b.item, b.space] for b in buffers],
        "steps": [
            {
                "kernel": list(step.kernel.spec),
                "words": {name: word(value) for name, value in step.words.items()},
                "node": step.node,
                "facts": step.facts,
            }
            for step in plan.steps
        ],
        "indices": list(plan.indices),
        "results": {name: list(found) for name, found in plan.results.items()},
    }


def _write_code(folder: Path, runtime: Runtime) -> None:
    """Driver and kernels at every panel width, signed; none where this user cannot sign."""
    engine = runtime.engine
    kernels = dict.fromkeys(step.kernel for step in runtime.plan.steps)
    texts = [kernel.code(engine.isa, width)[1] for kernel in kernels for width in WIDTHS]
    for text in (driver_text(engine.isa), *texts):
        key, code = engine.object(text)
        signature = sign(key.encode() + code)
        if signature is not None:
            (folder / f"{key}.o").write_bytes(signature + code)


# -- reading ---------------------------------------------------------------------------------------


def load(path: str | Path, *, threads: int = 0) -> LoadedModel:
    """Load what `CpuCompiled.save` wrote, without torch.

    Args:
        path: The folder.
        threads: Threads per call; 0 takes every core of this process.

    Raises:
        ArtifactError: if a file is missing, cut or altered, if the folder holds a Program alone, or
            if this machine lacks the instruction set: then lower the Program that is there.
    """
    place = Path(path) / _PART
    if not (place / _MANIFEST).is_file():
        raise _no_plan(Path(path))
    missing = "no plan was saved here, or the save was cut"
    check_files(place / _MANIFEST, FORMAT_VERSION, (_PLAN, _WEIGHTS), missing)
    found = read_json(place / _PLAN, "")
    isa = _isa(found, place)
    try:
        plan = _decode(found, place / _WEIGHTS)
        interface = found["interface"]
        tuples = {name: tuple(interface[name]) for name in ("inputs", "dims", "conditions")}
        known = Interface(**{**interface, **tuples})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(
            f"the files do not fit together: {error}", who="load", where=str(place)
        ) from error
    engine = shared_engine(isa)
    engine.offer(_signed(place / _CODE))
    pool = shared_pool(engine, threads or len(os.sched_getaffinity(0)))
    return LoadedModel(known, Runtime(plan, engine, pool))


def _no_plan(path: Path) -> ArtifactError:
    kind, hint = told_place(path)
    again = "CpuTarget().compile(program).save(folder) writes what load reads"
    return ArtifactError(
        f"no plan was saved here, or the save was cut: {kind}",
        who="load",
        where=str(path),
        hint=f"{hint}; {again}" if hint else again,
    )


def _isa(found: Mapping[str, Any], place: Path) -> Isa:
    """The instruction set of a plan, if this machine has all of it."""
    name = found.get("isa")
    chosen = next((isa for isa in ISAS.values() if isa.name == name), None)
    why = obstacle(chosen.name) if chosen else f"it lacks {name}"
    if chosen is not None and not why:
        chosen = with_extras(chosen)
        lacking = [f for f in found.get("features", ()) if f not in chosen.features]
        why = f"it lacks {', '.join(lacking)}" if lacking else ""
    if chosen is None or why:
        raise ArtifactError(
            f"this machine cannot run the plan, which was made for {name}: {why}",
            who="load",
            where=str(place),
            hint="lower the Program in the same folder: CpuTarget().compile(Program.load(...))",
        )
    return chosen


def _decode(found: Mapping[str, Any], weights: Path) -> Plan:
    buffers = [Buffer(*fields) for fields in found["buffers"]]
    with weights.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = [
        np.ndarray(tuple(a["shape"]), np.dtype(a["dtype"]), memory, a["start"])
        for a in found["arrays"]
    ]

    def word(value: Any) -> Word:
        if not isinstance(value, dict):
            return value  # type: ignore[no-any-return]  # a number, from JSON
        ((kind, number),) = value.items()
        return {"buffer": buffers, "array": arrays}[kind][number]  # type: ignore[index, no-any-return]

    steps = tuple(
        Step(
            catalog.named(step["kernel"]),
            {name: word(value) for name, value in step["words"].items()},
            step["node"],
            step["facts"],
        )
        for step in found["steps"]
    )
    results = {name: tuple(values) for name, values in found["results"].items()}
    return Plan(steps, tuple(found["indices"]), results)


def _signed(folder: Path) -> dict[str, bytes]:
    """Objects that this user signed, by key."""
    found = {}
    for path in sorted(folder.glob("*.o")):
        blob = path.read_bytes()
        signature, code = blob[:32], blob[32:]
        if sign(path.stem.encode() + code) == signature:
            found[path.stem] = code
    return found
