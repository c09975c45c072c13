"""The kit for testing a pass: the same helpers that the passes of sparsefx are tested with.

>>> import torch
>>> from sparsefx import function_pass
>>> from sparsefx.testing import assert_pass, small_program
>>> @function_pass("relu-to-gelu")
... def relu_to_gelu(program, ctx):
...     found = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
...     for node in found:
...         with ctx.rewriter.before(node):
...             new = ctx.rewriter.call(torch.ops.aten.gelu.default, *node.args)
...         ctx.rewriter.replace(node, new)
...     return len(found)
>>> before = small_program(lambda x: torch.relu(x), x=torch.randn(2, 4))
>>> after = assert_pass(relu_to_gelu(), before, '''
...     %gelu = aten.gelu(%x)
...     return {output: %gelu}
... ''', applied=1)
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.frontend.capture import capture
from sparsefx.graph.printing import format_node
from sparsefx.passbase import Pass, Skip
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program

__all__ = ["assert_equal_outputs", "assert_pass", "graph_text", "small_encoder", "small_program"]


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.forward = function


def small_program(
    model: nn.Module | Callable[..., Any], *, training: bool = False, **inputs: Tensor
) -> Program:
    """Capture a module or a plain function on example inputs, all sizes fixed."""
    module = model if isinstance(model, nn.Module) else _Function(model)
    return capture(module, inputs, dynamic=False).train(training)


def small_encoder(kind: str = "BertModel", **settings: Any) -> Program:
    """Capture a BERT of two layers and width 8 with random weights, in eval mode.

    Args:
        kind: A BERT class of transformers.
        settings: What its configuration says otherwise, e.g. ``num_hidden_layers=3``.

    Returns:
        A Program with one input, ``input_ids`` of dynamic batch and sequence.
    """
    import transformers

    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.BertConfig(**{**sizes, **settings})
    model: nn.Module = getattr(transformers, kind)(config).eval()
    return capture(model, {"input_ids": torch.ones(2, 4, dtype=torch.int64)})


def graph_text(program: Program) -> str:
    """Return the calls and the output of the graph, one a line: what assert_pass compares."""
    shown = [
        node
        for node in program.graph.nodes
        if node.op in ("call_function", "output") or (node.op == "call_module" and node.users)
    ]
    return "\n".join(format_node(node) for node in shown) + "\n"


def assert_pass(
    item: Pass,
    before: Program,
    after: str,
    *,
    applied: int | None = None,
    skipped: Sequence[Skip | str] | None = None,
    programs: Mapping[str, Program] | None = None,
) -> Program:
    """Run a pass and hold its result to the expected text.

    Args:
        item: The pass.
        before: The Program to run it on; must come out untouched.
        after: The expected :func:`graph_text` of the result; indentation does not matter.
        applied: How often the pass must have applied.
        skipped: What it must have skipped; a text is compared with ``where: reason``.
        programs: Further Programs for the pass, by name.

    Returns:
        The new Program.

    Raises:
        AssertionError: With a diff.
    """
    untouched = before.fingerprint()
    result = Pipeline((item,)).run(before, programs=programs)
    assert before.fingerprint() == untouched, f"{item} changed the Program of its caller"
    expected = textwrap.dedent(after).strip("\n")
    found = graph_text(result).strip("\n")
    if expected != found:
        diff = difflib.unified_diff(
            expected.splitlines(), found.splitlines(), "expected", "found", lineterm=""
        )
        raise AssertionError(f"{item}:\n" + "\n".join(diff))
    entry = result.history[-1]
    if applied is not None:
        assert entry.applied == applied, f"{item} applied {entry.applied} times, not {applied}"
    if skipped is not None:
        told = [str(skip) for skip in entry.skipped]
        assert told == [str(skip) for skip in skipped], f"{item} skipped {told}"
    return result


def assert_equal_outputs(
    first: Callable[..., Mapping[str, Tensor]],
    second: Callable[..., Mapping[str, Tensor]],
    batch: Mapping[str, Tensor],
    *,
    tolerance: float = 0.0,
) -> None:
    """Hold two callables to equal outputs, within an absolute tolerance, on one batch.

    Raises:
        AssertionError: Naming the output and the largest difference.
    """
    with torch.no_grad():
        left, right = first(**batch), second(**batch)
    for name, value in left.items():
        assert name in right, f"the second has no output {name!r}"
        worst = float((value - right[name]).abs().max())
        assert worst <= tolerance, f"{name} differs by up to {worst:.3g}, allowed {tolerance:.3g}"
