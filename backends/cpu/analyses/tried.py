"""All parts of a graph that are recognised by what they do to numbers."""

from __future__ import annotations

from torch import fx

from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.means import Mean, find_means
from sparsefx.backends.cpu.analyses.norms import RmsNorm, find_norms
from sparsefx.backends.cpu.analyses.rotary import Rotation, find_rotations
from sparsefx.backends.cpu.analyses.spelled import Spelled, find_spelled
from sparsefx.program import Program

__all__ = ["Tried", "find_tried"]

Tried = Spelled | Rotation | Mean | RmsNorm
"""Each has a `source`, and nodes `inner` whose values nothing else reads."""


def find_tried(program: Program, host: Host) -> dict[fx.Node, Tried]:
    """Activations, rotations, means and RMS norms, by their last node."""
    return {
        **find_spelled(program.graph),
        **find_rotations(program, host),
        **find_means(program, host),
        **find_norms(program, host),
    }
