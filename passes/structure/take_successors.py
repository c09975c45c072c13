"""take-successors: the small modules alone are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsefx.passbase import Pass, PassContext, PassReport, Skip
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.structure.layer_names import set_layer_count
from sparsefx.passes.structure.replace_modules import DRAW, SUCCESSOR_PREFIX, ReplaceModules

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["TakeSuccessors"]


@dataclass(frozen=True)
class TakeSuccessors(Pass):
    """Remove the modules that ``replace-modules`` gave successors to; these take their names.

    What is left computes what the Program computed in evaluation, and saves as a model of fewer
    layers.

    Establishes nothing. Skips a Program without successors.

    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import small_encoder
    >>> program = small_encoder()
    >>> small = Pipeline.parse("replace-modules,take-successors").run(program)
    >>> small.config["num_hidden_layers"]
    1
    """

    name: ClassVar[str] = "take-successors"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Let every choice be its successor, and remove the rest."""
        rw = ctx.rewriter
        choices = [
            user
            for draw in program.graph.find_nodes(op="call_function", target=DRAW)
            for user in draw.users
        ]
        if not choices:
            return PassReport(0, (Skip("layers", "none has a successor"),))
        for choice in choices:
            rw.replace(choice, choice.args[1], erase=False)
        rw.erase_unused(choices)
        for name in program.named_tensors():
            if name.startswith(SUCCESSOR_PREFIX):
                rw.rename_tensor(name, name.removeprefix(SUCCESSOR_PREFIX))
        program.active = tuple(i for i in program.active if not isinstance(i, ReplaceModules))
        set_layer_count(program, range(len(program.facts(EncoderStructure).layers)))
        return PassReport(len(choices))
