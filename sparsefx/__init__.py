"""sparsefx: a compiler for BERT-class encoders.

Capture a model as a graph, rewrite it with passes, train through the rewritten graph, and lower it:

    program = sparsefx.capture(model, {"input_ids": ids, "attention_mask": mask})
    program = sparsefx.Pipeline.parse("magnitude-prune{sparsity=0.9}").run(program)
"""

__version__ = "0.1.0.dev0"

from sparsefx.capture import capture
from sparsefx.passbase import Pass, PassReport, Skip, function_pass
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.properties import Property

__all__ = [
    "Pass",
    "PassReport",
    "Pipeline",
    "Program",
    "Property",
    "Skip",
    "__version__",
    "capture",
    "function_pass",
]
