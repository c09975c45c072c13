"""sparsefx: a compiler for BERT-class encoders.

Capture a model as a graph, rewrite it with passes, train through the rewritten graph, and lower it:

    program = sparsefx.capture(model, {"input_ids": ids, "attention_mask": mask})
    program = sparsefx.Pipeline.parse("magnitude-prune{sparsity=0.9}").run(program)

The names below are the whole public API of this package; importing it loads no torch, which the
run time of a compiled model does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from sparsefx.analysis import Analysis
    from sparsefx.compiler import compile
    from sparsefx.frontend.capture import capture
    from sparsefx.passbase import Pass, PassReport, Skip, function_pass
    from sparsefx.pipeline import Pipeline
    from sparsefx.program import Program
    from sparsefx.properties import Property
    from sparsefx.recipe import Recipe
    from sparsefx.target import Target

__all__ = [
    "Analysis",
    "Pass",
    "PassReport",
    "Pipeline",
    "Program",
    "Property",
    "Recipe",
    "Skip",
    "Target",
    "__version__",
    "capture",
    "compile",
    "function_pass",
]

_HOMES = {
    "Analysis": "analysis",
    "Pass": "passbase",
    "PassReport": "passbase",
    "Pipeline": "pipeline",
    "Program": "program",
    "Property": "properties",
    "Recipe": "recipe",
    "Skip": "passbase",
    "Target": "target",
    "capture": "frontend.capture",
    "compile": "compiler",
    "function_pass": "passbase",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsefx' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"sparsefx.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
