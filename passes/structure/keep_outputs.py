"""keep-outputs: a Program returns less, and loses what served the rest alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsefx.errors import PassError, did_you_mean
from sparsefx.passbase import Pass, PassContext, PassReport, Skip

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["KeepOutputs"]


@dataclass(frozen=True)
class KeepOutputs(Pass):
    """Return the named outputs alone; a head that only the others needed is removed.

    Establishes nothing. Use it to take a head off: ``keep-outputs{outputs=logits}`` after
    pre-training with ``mlm-head``.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> program = small_program(lambda x: {"a": x.relu(), "b": x.exp()}, x=torch.ones(2))
    >>> print(graph_text(Pipeline.parse("keep-outputs{outputs=b}").run(program)), end="")
    %exp = aten.exp(%x)
    return {b: %exp}

    Skips a Program that returns no other outputs.

    Attributes:
        outputs: Names of the outputs to keep.
    """

    name: ClassVar[str] = "keep-outputs"
    changes_signature: ClassVar[bool] = True

    outputs: tuple[str, ...] = ("logits",)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)
        object.__setattr__(self, "outputs", names)
        if not names:
            raise self.refuse("outputs", "at least one output is needed")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Drop the other outputs, and what only they used."""
        rw = ctx.rewriter
        former = program.outputs()
        for name in self.outputs:
            if name not in former:
                raise PassError(
                    f"there is no output {name!r}; it returns {', '.join(former)}",
                    who=self.name,
                    where="outputs",
                    hint=did_you_mean(name, former),
                )
        dropped = [name for name in former if name not in self.outputs]
        if not dropped:
            return PassReport(0, (Skip("outputs", "it returns no others"),))
        for name in dropped:
            rw.drop_output(name)
        count = rw.erase_unused([former[name] for name in dropped])
        return PassReport(len(dropped), notes=(f"{count} nodes removed with them",))
