"""compile: a model, a pipeline and a target in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsefx import registry
from sparsefx.frontend.capture import capture
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.target import Compiled, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["compile"]


def compile(  # the verb of the field; used as sparsefx.compile
    model: nn.Module | Program,
    example_inputs: Mapping[str, Tensor | None] | Sequence[Tensor] | None = None,
    *,
    pipeline: str | Pipeline = "",
    target: str | Target = "reference",
) -> Compiled:
    """Capture ``model``, run a pipeline on it and lower it to a target.

    Training has no place in this one call: a pipeline that prunes here prunes at once, without
    recovery. See :class:`sparsefx.train.session.Session` for the whole way.

    Args:
        model: A module to capture, or a Program (which stays as it is).
        example_inputs: Example inputs, when ``model`` is a module.
        pipeline: Passes to run first, as text or as a Pipeline.
        target: Where to run, e.g. ``"cpu{isa='avx2'}"``.

    Raises:
        SparsefxError: From capture, pipeline or target, with what to do.
    """
    program = model if isinstance(model, Program) else capture(model, example_inputs).eval()
    steps = Pipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
    place = registry.parse_target(target) if isinstance(target, str) else target
    return place.compile(steps.run(program) if steps.passes else program)
