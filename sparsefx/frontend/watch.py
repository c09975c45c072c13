"""What is seen of a model while torch.export runs it.

Hooks, and the backward of an autograd.Function, leave no trace in an exported graph; nor does
inference mode.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

__all__ = ["Trace", "watched"]

_SHAPES: Final = logging.getLogger("torch.fx.experimental.symbolic_shapes")


@dataclass
class Trace:
    """What the model did.

    Attributes:
        entered: The modules whose forward has not returned.
        returned: What the forward of the model returned.
        doubts: Why gradients may be others than those of the operators; without values, ordered.
    """

    entered: list[str] = field(default_factory=list)
    returned: Any = None
    doubts: dict[str, None] = field(default_factory=dict)


@contextmanager
def watched(model: nn.Module) -> Iterator[Trace]:
    """Within this context calls of ``model`` are traced, and gradients are on."""
    trace = Trace()
    _note_hooks(model, trace)
    with ExitStack() as stack:
        # In the exported graph, regions show that differ from what is on around it.
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_modules_noted(model, trace))
        stack.enter_context(_hooks_on_values_noted(trace))
        stack.enter_context(_inference_as_no_grad())
        stack.enter_context(_partial_graph_withheld())
        yield trace
    # Not before: asking a view that was written to for its grad_fn computes, which export records.
    trace.doubts.update(dict.fromkeys(_functions_behind(trace.returned)))


def _note_hooks(model: nn.Module, trace: Trace) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            trace.doubts[f"a hook on {name}"] = None
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            trace.doubts[f"a backward hook on {_label(name, module)}"] = None


def _label(name: str, module: nn.Module) -> str:
    return f"{name or '<root>'} ({type(module).__name__})"


@contextmanager
def _modules_noted(model: nn.Module, trace: Trace) -> Iterator[None]:
    def note_result(*call: Any) -> None:
        trace.returned = call[-1]

    handles = []
    for name, module in model.named_modules():
        label = _label(name, module)
        handles.append(
            module.register_forward_pre_hook(lambda *_, label=label: trace.entered.append(label))
        )
        handles.append(module.register_forward_hook(lambda *_: trace.entered.pop() and None))
    handles.append(model.register_forward_hook(note_result))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _functions_behind(returned: Any) -> list[str]:
    """Return the autograd Functions with a backward in Python that gradients would pass."""
    leaves = pytree.tree_leaves(returned)
    stack: list[Any] = [_source(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    seen: set[Any] = {None}
    found = []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(source for source, _ in node.next_functions)
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            found.append(f"the backward of the autograd.Function {name}")
    return found


def _source(value: Tensor) -> Any:
    try:
        return value.grad_fn
    except RuntimeError:  # autograd forbids what was written to it, in the model as in a graph
        return None


@contextmanager
def _hooks_on_values_noted(trace: Trace) -> Iterator[None]:
    plain = Tensor.register_hook

    def register_hook(tensor: Tensor, hook: Any) -> Any:
        where = trace.entered[-1] if trace.entered else "the model"
        trace.doubts[f"a hook on a value in {where}"] = None
        return plain(tensor, hook)  # type: ignore[no-untyped-call]

    Tensor.register_hook = register_hook  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.register_hook = plain  # type: ignore[method-assign]


@contextmanager
def _inference_as_no_grad() -> Iterator[None]:
    """Let inference mode switch gradients off, which export sees, and nothing else."""

    def enter(mode: Any) -> None:
        mode.was_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(not mode.mode)

    def leave(mode: Any, *_: object) -> None:
        torch._C._set_grad_enabled(mode.was_enabled)

    kind: Any = torch.inference_mode
    plain = kind.__enter__, kind.__exit__
    kind.__enter__, kind.__exit__ = enter, leave
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = plain


class _WithoutGraph:
    """Standard error, without the graph so far that torch.export prints when it fails."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        graph = getattr(sys.exc_info()[1], "partial_fx_graph", None)
        if graph is not None and text in (graph, "\n"):
            return len(text)
        written: int = self._stream.write(text)
        return written


@contextmanager
def _partial_graph_withheld() -> Iterator[None]:
    """Keep back what torch says of symbols that no user knows; the error names the line."""

    def is_told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unable to find user code corresponding to")

    _SHAPES.addFilter(is_told)
    try:
        with redirect_stderr(_WithoutGraph(sys.stderr)):
            yield
    finally:
        _SHAPES.removeFilter(is_told)
