"""Joins the graph of a teacher to the graph of a student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import fx

from sparsefx.errors import PassError, did_you_mean
from sparsefx.graph.ops import dropout_rate
from sparsefx.inputs.signature import InputSpec
from sparsefx.joined import TEACHER_PREFIX
from sparsefx.passes.analyses.dataflow import whole_graph
from sparsefx.passes.pretrain.vocabulary import lookups
from sparsefx.rewrite import Rewriter

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Joined", "check_inputs", "check_vocabulary"]

aten = torch.ops.aten

_WHO = "distill"


class Joined:
    """A teacher whose nodes are copied into the student's graph when they are asked for.

    What no term needs is not copied. The teacher's tensors become buffers below ``teacher.``:
    nothing trains them, and as they and the token ids need no gradient, autograd builds no graph
    for the teacher.

    Args:
        rewriter: Edits the student.
        teacher: The teacher; stays as it is.
        trains: False copies it in evaluation mode, without dropout. True lets its dropout follow
            the student's mode.
    """

    def __init__(self, rewriter: Rewriter, teacher: Program, *, trains: bool) -> None:
        self._rewriter = rewriter
        self._teacher = teacher
        self._trains = trains
        self._flow = whole_graph(teacher.graph)
        self._copied: dict[fx.Node, Any] = {}
        self._device = rewriter.program.device

    def __call__(self, node: fx.Node) -> fx.Node:
        """Return the copy of one of the teacher's nodes, at the rewriter's current place."""
        wanted = {node, *nx.ancestors(self._flow, node)} - self._copied.keys()
        for each in sorted(wanted):
            self._copied[each] = self._copy(each)
        copy = self._copied[node]
        if not isinstance(copy, fx.Node):
            raise PassError(f"the teacher's %{node.name} is no tensor", who=_WHO)
        return copy

    def _copy(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            graph = self._rewriter.program.graph
            return next(iter(graph.find_nodes(op="placeholder", target=node.target)))
        if node.op == "get_attr":
            tensor = self._teacher.tensor(str(node.target)).detach().clone()
            return self._rewriter.add_buffer(
                f"{TEACHER_PREFIX}{node.target}", tensor.to(self._device)
            )
        if node.op == "call_module":
            return self._rewriter.training() if self._trains else False
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), self._inner)
        if not self._trains and node.target in (aten.dropout.default, aten.feature_dropout.default):
            return args[0]
        if not self._trains and node.target is dropout_rate:
            return 0.0
        copy = self._rewriter.call(node.target, *args, **kwargs)  # type: ignore[arg-type]  # call_function
        copy.meta["module"] = TEACHER_PREFIX + node.meta.get("module", "")
        return copy

    def _inner(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._copied[value]
        return self._device if isinstance(value, torch.device) else value


def check_inputs(student: Program, teacher: Program, added: Sequence[str]) -> list[InputSpec]:
    """Return the inputs to add for the teacher.

    Args:
        student: Its inputs feed the teacher too.
        teacher: The teacher.
        added: Names of inputs that the teacher alone reads.

    Raises:
        PassError: When the teacher would miss an input, or read one of another type or shape.
    """
    ours = {spec.name: spec for spec in student.signature.inputs}
    theirs = {spec.name: spec for spec in teacher.signature.inputs}
    for name in added:
        if name not in theirs or name in ours:
            raise PassError(
                f"teacher_inputs names {name!r}, which "
                + ("the student has already" if name in ours else "the teacher does not take"),
                who=_WHO,
                where="teacher_inputs",
                hint=did_you_mean(name, theirs),
            )
    for name, spec in theirs.items():
        if name in ours:
            _check_same(ours[name], spec)
        elif name not in added:
            raise PassError(
                f"the teacher needs the input {name!r}, which the student does not take",
                who=_WHO,
                where=name,
                hint=f"capture the student with {name!r} among its example inputs, or, when only "
                f"the teacher reads it, add it with distill{{teacher_inputs=({name!r},)}}",
            )
    _check_segments(ours, theirs, teacher)
    return [theirs[name] for name in added]


def _check_same(ours: InputSpec, theirs: InputSpec) -> None:
    fits = ours.dtype is theirs.dtype and len(ours.dims) == len(theirs.dims)
    if fits and all(
        a == b or not isinstance(b, int) for a, b in zip(ours.dims, theirs.dims, strict=True)
    ):
        return
    raise PassError(
        f"the teacher takes {theirs}, the student {ours}",
        who=_WHO,
        where=ours.name,
        hint="capture both with the same dtype and the same dynamic dimensions",
    )


def _check_segments(
    ours: dict[str, InputSpec], theirs: dict[str, InputSpec], teacher: Program
) -> None:
    """Refuse a teacher that knows segments but was captured without them.

    It would take every token for one of the first segment, while the student is told the truth.
    """
    name = "token_type_ids"
    if name in ours and name not in theirs and teacher.config.get("type_vocab_size", 0) > 1:
        raise PassError(
            f"the student takes {name!r}, but the teacher, whose model has "
            f"{teacher.config['type_vocab_size']} token types, was captured without it",
            who=_WHO,
            where=name,
            hint=f"capture the teacher with {name!r} among its example inputs",
        )


def check_vocabulary(student: Program, teacher: Program) -> None:
    """Refuse a teacher that reads the shared token ids with a table of another size.

    Raises:
        PassError: Names the input and both tables.
    """
    ours, theirs = (
        {str(node.target): table for node, table in lookups(program)}
        for program in (student, teacher)
    )
    for name in sorted(ours.keys() & theirs.keys()):
        mine, other = (
            program.tensor(table)
            for program, table in ((student, ours[name]), (teacher, theirs[name]))
        )
        if mine.shape[0] != other.shape[0]:
            raise PassError(
                f"the teacher has another vocabulary: its {theirs[name]} holds {other.shape[0]} "
                f"entries, the student's {ours[name]} {mine.shape[0]}",
                who=_WHO,
                where=name,
                hint="both read the same token ids, so they must share one tokenizer",
            )
