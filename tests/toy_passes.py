"""Passes on a small Program, to test pipelines with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsefx import (
    Pass,
    PassReport,
    Program,
    Property,
    Skip,
    function_pass,
)
from sparsefx.passbase import PassContext
from sparsefx.testing import small_program

aten = torch.ops.aten


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies every relu by a factor: a pass to test with."""

    name: ClassVar[str] = "scale"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.FUSED})

    factor: float = 2.0
    words: tuple[str, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == 0:
            raise self.refuse("factor", "expected a number other than 0")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        found = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        for node in found:
            with ctx.rewriter.after(node):
                new = ctx.rewriter.call(aten.mul.Tensor, node, self.factor)
            ctx.rewriter.replace(node, new, erase=False)
        skipped = () if found else (Skip("graph", "no relu"),)
        return PassReport(len(found), skipped)


@dataclass(frozen=True)
class NeedsLock(Scale):
    name: ClassVar[str] = "needs-lock"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.LOCKED})


@function_pass("break-output")
def break_output(program: Program, ctx: PassContext) -> int:
    """Drops the output behind the verifier's back."""
    program.graph.output_node().args = ({},)
    return 1


@function_pass("crash")
def crash(program: Program, ctx: PassContext) -> int:
    """Fails with an error of its own."""
    raise ValueError("inside")


def relu_program() -> Program:
    return small_program(lambda x: torch.relu(x) + 1, x=torch.randn(2, 3))


# -- spec text -------------------------------------------------------------------------------------
