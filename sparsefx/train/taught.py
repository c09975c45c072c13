"""What a teacher computes of all texts, once before a stage, in place of its graph in each step.

Predictions are kept in memory. Hidden states lie as float16 in files that are mapped, 2 bytes for
each token, layer and feature: 1.6 GB for 12,000 texts of 25 tokens, 6 layers and the embeddings of
384 features. The relative error of 0.05 % is far below what a student comes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.errors import TrainingError
from sparsefx.graph.subgraph import subgraph
from sparsefx.hooks import calling
from sparsefx.inputs.signature import TAUGHT
from sparsefx.program import Program
from sparsefx.storage.files import take_blocks
from sparsefx.train.data.batches import Encoded, Tell, TokenValues, evaluation_batches
from sparsefx.train.evaluation import inputs_for
from sparsefx.train.sizes import check_sizes, fixed_batch, scored_sizes

__all__ = ["takes_taught", "with_teacher"]

Named = Mapping[str, fx.Node]


@runtime_checkable
class _Teaches(Protocol):
    """A pass that added inputs which a teacher fills."""

    def taught(self, student: Program, teacher: Program) -> Named:
        """Return the teacher's node for each of these inputs."""


def takes_taught(program: Program) -> bool:
    """Return whether a Program takes what its teacher computes, beforehand, as inputs."""
    return any(name.startswith(TAUGHT) for name in program.signature.input_names)


def with_teacher(
    student: Program,
    teacher: Program,
    data: Encoded,
    size: int,
    place: Path,
    *,
    bf16: bool,
    tell: Tell | None = None,
) -> Encoded:
    """Return ``data`` with what ``student`` takes of its teacher: inputs named ``teacher_...``.

    Args:
        student: Its other inputs come from the tokenizer.
        teacher: Run once over all examples, in evaluation mode.
        data: The examples.
        size: Examples in a batch.
        place: Folder for hidden states; files in it are written over.
        bf16: Run it under autocast.
        tell: Called after each batch.

    Raises:
        TrainingError: The student takes what no teacher gives, or hides tokens from it; the states
            do not fit on the disk or into float16.
    """
    nodes = _nodes(student, teacher)
    run, _ = subgraph(teacher.module, nodes)
    ranks = {spec.name: len(spec.dims) for spec in student.signature.inputs}
    kept = {
        name: _room(teacher, node, data, place / name, ranks[name]) for name, node in nodes.items()
    }
    device = teacher.device
    fixed = fixed_batch(teacher)
    check_sizes(teacher, data, scored_sizes(teacher, len(data), size), where="teacher")
    with teacher.evaluating(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        batches = evaluation_batches(data, fixed or size, filled=fixed is not None, tell=tell)
        for rows, batch in batches:
            inputs = inputs_for(teacher, batch)
            found = run({name: value.to(device) for name, value in inputs.items()})
            for name, value in found.items():
                _keep(kept[name], rows, value.float().cpu()[: len(rows)], name)
    return replace(data, more=kept)


def _nodes(student: Program, teacher: Program) -> Named:
    names = [n for n in student.signature.input_names if n.startswith(TAUGHT)]
    found: dict[str, fx.Node] = {}
    for index, item in enumerate(student.active):
        if isinstance(item, _Teaches):
            with calling(item, "taught", f"active pass {index}"):
                found.update(item.taught(student, teacher))
    if missing := [name for name in names if name not in found]:
        raise TrainingError(
            f"{', '.join(missing)} cannot be computed beforehand",
            who="session",
            hint="leave out cached=True: the teacher then runs in each step",
        )
    hidden = torch.ops.sparsefx.draw_masked.default
    if student.graph.find_nodes(op="call_function", target=hidden):
        raise TrainingError(
            "tokens are hidden anew in each step, and the teacher was to run beforehand",
            who="session",
            hint="leave out cached=True: the teacher then sees the same tokens",
        )
    return found


def _room(
    teacher: Program, node: fx.Node, data: Encoded, path: Path, rank: int
) -> Tensor | TokenValues:
    """Return where a value goes: [examples], [examples, classes], or [all tokens, width].

    ``rank``: that of what the student takes, [batch] or [batch, 1] for the same value.
    """
    if rank == 1:
        return torch.zeros(len(data))
    fact = teacher.shape_of(node)
    width: Any = (1 if len(fact.dims) == 1 else fact.dims[-1]) if fact else None
    if fact is None or not isinstance(width, int):
        raise TrainingError(f"%{node.name} has no fixed width", who="session", where=path.name)
    if rank == 2:
        return torch.zeros(len(data), width)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(data.lengths)])
    return TokenValues(_mapped(path, (int(starts[-1]), width)), starts)


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Return a new file as an array; its blocks are taken now, so that no write can fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            take_blocks(file, 2 * shape[0] * shape[1])
        return np.memmap(path, np.float16, "r+", shape=shape)
    except OSError as error:
        raise TrainingError(
            f"no room for the teacher's hidden states: {error.strerror}",
            who="session",
            where=str(path),
            hint="leave out cached=True: the teacher then runs in each step",
        ) from error


def _keep(room: Tensor | TokenValues, rows: NDArray[np.int64], value: Tensor, name: str) -> None:
    if isinstance(room, Tensor):
        room[torch.from_numpy(rows)] = value.view(len(rows), *room.shape[1:])
        return
    found = value.numpy().astype(np.float16)
    if not np.isfinite(found).all():
        raise TrainingError(
            "the teacher's states are not finite in float16",
            who="session",
            where=name,
            hint="leave out cached=True: the teacher then runs in each step",
        )
    for place, row in enumerate(rows):
        start, end = room.starts[row], room.starts[row + 1]
        room.values[start:end] = found[place, : end - start]
