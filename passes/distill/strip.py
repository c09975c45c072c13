"""strip-distillation: takes the teacher and the loss out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsefx.inputs.signature import TAUGHT
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.distill.distill import Distill
from sparsefx.passes.distill.heads import label_inputs, logits_outputs
from sparsefx.passes.distill.states import STATES
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["StripDistillation"]


@dataclass(frozen=True)
class StripDistillation(Pass):
    """Remove what ``distill`` added: exactly the graph from before is left.

    The loss outputs go, then whatever served them alone: the teacher and its tensors, the
    projection, the inputs for labels and for the teacher. What training or other passes changed in
    the student stays.

    Requires and destroys ``distilling``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_program
    >>> student, teacher = (
    ...     small_program(torch.nn.Linear(4, 2), input=torch.zeros(3, 4)) for _ in "st"
    ... )
    >>> back = Pipeline.parse("distill{labels=1.0},strip-distillation").run(
    ...     student, programs={"teacher": teacher}
    ... )
    >>> back.fingerprint() == student.fingerprint()
    True
    """

    name: ClassVar[str] = "strip-distillation"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.DISTILLING})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.DISTILLING})
    changes_signature: ClassVar[bool] = True

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Drop the outputs, what only they used, and the inputs that were added."""
        rw = ctx.rewriter
        losses = program.signature.losses
        ends = {program.outputs()[name] for name in losses}
        for name in losses:
            rw.drop_output(name)
        read = _read_inputs(program)
        erased = rw.erase_unused(ends)
        lost = read - _read_inputs(program)
        for name in (*_added_inputs(program), *(n for n in lost if n.startswith(STATES))):
            rw.remove_input(name)
        program.active = tuple(i for i in program.active if not isinstance(i, Distill))
        note = f"removed {len(losses)} loss outputs and {erased} nodes"
        return PassReport(len(losses), notes=(note,))


def _read_inputs(program: Program) -> set[str]:
    """Return the inputs that something reads."""
    placeholders = program.graph.find_nodes(op="placeholder")
    return {str(node.target) for node in placeholders if node.users}


def _added_inputs(program: Program) -> list[str]:
    """Return the inputs that ``distill`` added, which its options tell; hidden states apart.

    Which layers' states it took hangs on the teacher: those are the ones that its loss alone read.
    """
    (item,) = (each for each in program.active if isinstance(each, Distill))
    names = list(item.teacher_inputs)
    if item.labels:
        names += [spec.name for spec in label_inputs(program, item.outputs).values()]
    if item.cached and item.logits:
        names += [f"{TAUGHT}{name}" for name in logits_outputs(program, item.outputs)]
    return names
