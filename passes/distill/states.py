"""Hidden states of a teacher that come with the batch, in place of its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.inputs.signature import TAUGHT, InputSpec
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.distill.heads import logits_outputs, match_heads

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["STATES", "Given", "taught_outputs"]

STATES: Final = f"{TAUGHT}hidden_"


def _state_nodes(teacher: Program) -> dict[str, fx.Node]:
    """Return what each layer of a teacher reads and the last one returns, by the input's name.

    ``teacher_hidden_0`` is what enters the first layer, ``teacher_hidden_i`` comes out of layer i.
    """
    layers = teacher.facts(EncoderStructure).layers
    found = {f"{STATES}{index}": layer.input for index, layer in enumerate(layers[:1])}
    return found | {f"{STATES}{place}": each.hidden for place, each in enumerate(layers, start=1)}


class Given:
    """Stands for a joined teacher: each of its states is an input, added when it is asked for.

    Args:
        rewriter: Edits the student.
        teacher: Tells shapes; stays as it is.
    """

    def __init__(self, rewriter: Rewriter, teacher: Program) -> None:
        self._rewriter = rewriter
        self._teacher = teacher
        self._names = {node: name for name, node in _state_nodes(teacher).items()}
        self._added: dict[str, fx.Node] = {}

    def __call__(self, node: fx.Node) -> fx.Node:
        """Return the input that holds one of the teacher's states [batch, sequence, width]."""
        name, fact = self._names.get(node), self._teacher.shape_of(node)
        if name is None or fact is None:
            raise PassError(
                f"the teacher's %{node.name} is no state of a layer",
                who="distill",
                where="cached",
                hint="leave out cached=True: the teacher then runs in each step",
            )
        if name not in self._added:
            self._added[name] = self._rewriter.add_input(InputSpec(name, torch.float32, fact.dims))
        return self._added[name]


def taught_outputs(student: Program, teacher: Program, only: tuple[str, ...]) -> dict[str, fx.Node]:
    """Return the node of ``teacher`` for each input of ``student`` that holds what it computes."""
    wanted = student.signature.input_names
    found = {name: node for name, node in _state_nodes(teacher).items() if name in wanted}
    heads = {f"{TAUGHT}{name}": name for name in logits_outputs(student, only)}
    if heads.keys() & set(wanted):
        matched, theirs = match_heads(student, teacher, only), teacher.outputs()
        found |= {given: theirs[matched[name]] for given, name in heads.items()}
    return found
