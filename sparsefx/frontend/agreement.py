"""Whether a captured Program computes what its model computes, tried on the example inputs.

Export runs a model in training mode, with sizes of two and more. What the model does in evaluation
mode alone, or at a size of one alone, leaves no trace in the graph: it shows only when both run.
"""

from __future__ import annotations

import dis
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sparsefx.errors import CaptureError, first_line
from sparsefx.frontend.gradients import compare_gradients
from sparsefx.frontend.places import place
from sparsefx.program import Program

__all__ = ["check_agreement", "in_mode", "named_outputs"]

logger = logging.getLogger(__name__)

# Enough to see a difference; examples may be as large as batches of training.
_MOST = 8
_HINT = (
    "both modes run from one graph, in which dropout and batch norm alone follow the mode. Write "
    "forward without other uses of self.training (but functional.dropout(x, p, self.training)), "
    "or, for evaluation alone, capture what torch.export.export makes of model.eval()"
)
_NO_READ = (
    "no code of the model asks for self.training: it may ask for its mode in another way, or take "
    "random numbers from outside torch; if it does neither, this is a fault of capture"
)
_DROPS = (
    "give it the mode, as in functional.dropout(x, p, self.training) and in "
    "scaled_dot_product_attention(..., dropout_p=p if self.training else 0.0), or use nn.Dropout"
)
_CHANGES = (
    "a graph does the same in every call: keep what changes from call to call in a buffer, and "
    "draw random numbers with torch"
)
_FOLLOWED = {  # read the mode as a graph does, too
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.modules.batchnorm._BatchNorm),
    *(nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer),
}
_LOWEST = torch.finfo(torch.bfloat16).min  # what masked scores of a Program are filled with
_FILLED = -1e4  # no model computes what is so low, but many fill it in


def check_agreement(
    model: nn.Module, program: Program, inputs: Mapping[str, Tensor], doubts: Sequence[str] = ()
) -> tuple[str, ...]:
    """Compare Program and model in evaluation mode; return conditions on sizes that it needs.

    Dynamic dimensions of the examples are cut short. One that is 1 in a second comparison must be
    larger if that alone differs. Gradients are compared where there are doubts about them.

    Args:
        model: What was captured; it is left as it is.
        program: What it became.
        inputs: The example inputs, with dynamic dimensions of two and more.
        doubts: Why gradients may differ; most models give no reason, and no backward is run.

    Raises:
        CaptureError: They differ; names where the model asks for its mode.
    """
    if any(t.is_meta for t in chain(model.parameters(), model.buffers(), inputs.values())):
        return ()  # there are no values
    sizes = _sizes(program, inputs)
    tried = {dim: min(size, _MOST) for dim, size in sizes.items()}
    if not program.signature.admits(tried):
        tried = sizes
    small = _cut(program, inputs, tried)
    expected = _of_model(model, small, gradients=bool(doubts))
    if isinstance(expected, Exception) and tried != sizes:  # it may need all of its example
        tried, small = sizes, dict(inputs)
        expected = _of_model(model, small, gradients=bool(doubts))
    if isinstance(expected, Exception) and doubts:
        causes, why = ", ".join(doubts), first_line(expected)
        logger.warning("capture: gradients not compared (%s): the model fails: %s", causes, why)
        expected, doubts = _of_model(model, small), ()
    if isinstance(expected, Exception):
        why = first_line(expected)
        logger.warning("capture: not compared with the model, which fails on its example: %s", why)
        return ()
    found = _of_program(program, small, gradients=bool(doubts))
    if told := _difference(expected, found):
        raise _disagreement(model, small, expected, told)
    if doubts and not isinstance(found, Exception):
        compare_gradients(model, program, expected, found, doubts)
    return tuple(
        f"{dim} >= 2" for dim in tried if _is_lost_at_one(model, program, small, {**tried, dim: 1})
    )


def _is_lost_at_one(
    model: nn.Module, program: Program, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> bool:
    if not program.signature.admits(sizes):
        return False  # refused already
    batch = _cut(program, inputs, sizes)
    expected = _of_model(model, batch)
    if isinstance(expected, Exception):
        return False
    return bool(_difference(expected, _of_program(program, batch)))


def _sizes(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        dim: size
        for spec in program.signature.inputs
        for dim, size in zip(spec.dims, inputs[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }


def _cut(
    program: Program, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the first part of each input."""
    return {
        spec.name: inputs[spec.name][
            tuple(slice(sizes[dim] if isinstance(dim, str) else None) for dim in spec.dims)
        ]
        for spec in program.signature.inputs
    }


def _of_model(
    model: nn.Module, inputs: Mapping[str, Tensor], *, gradients: bool = False
) -> dict[str, Tensor] | Exception:
    try:
        with in_mode(model, training=False), _plain_attention():
            return dict(named_outputs(_called(model, inputs, gradients), Tensor))
    except Exception as error:  # of code of a user, which may raise anything; the callers tell
        return error


def _of_program(
    program: Program, inputs: Mapping[str, Tensor], *, gradients: bool = False
) -> dict[str, Tensor] | Exception:
    try:
        with program.evaluating():
            return dict(named_outputs(_called(program.module, inputs, gradients), Tensor))
    except (IndexError, RuntimeError) as error:
        return error


def _called(module: nn.Module, inputs: Mapping[str, Tensor], gradients: bool) -> Any:
    """Run ``module`` on copies of its buffers, with the random numbers that come next anyway."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if is_used else ()
    with torch.set_grad_enabled(gradients), torch.random.fork_rng(list(devices)):
        copies = {name: value.clone() for name, value in inputs.items()}
        return functional_call(module, buffers, (), copies)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Within this context the model is in one mode; the mode of each of its modules is restored."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let nn.TransformerEncoder compute padding too, which it skips without gradients."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def named_outputs(
    value: object, kind: type[fx.Node] | type[Tensor], name: str = ""
) -> Iterator[tuple[str, Any]]:
    """Return name and value of each ``kind`` in what a model returns, however it is nested."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_outputs(item, kind, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from named_outputs(item, kind, f"{name or 'output'}.{index}")
    elif isinstance(value, kind):
        yield name or "output", value


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor] | Exception) -> str:
    """Return what tells two results apart; nothing when they agree."""
    if isinstance(found, Exception):
        return f"the graph cannot run: {first_line(found)}"
    if expected.keys() != found.keys():
        return f"the model returns {', '.join(expected)}, the graph {', '.join(found)}"
    told = (_apart(name, value, found[name]) for name, value in expected.items())
    return next(filter(None, told), "")


def _apart(name: str, expected: Tensor, found: Tensor) -> str:
    if expected.shape != found.shape:
        return f"{name} has shape {tuple(expected.shape)}, in the graph {tuple(found.shape)}"
    if expected.dtype != found.dtype:
        return f"{name} has type {expected.dtype}, in the graph {found.dtype}"
    if not expected.numel():
        return ""
    if expected.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    # On the CPU, as some devices have no double precision.
    left, right = (value.detach().cpu().double().clamp(min=_LOWEST) for value in (expected, found))
    same = (left == right) | (left.isnan() & right.isnan())
    gap = float(torch.where(same, 0.0, (left - right).abs()).max())
    filled = same & (left <= _FILLED)  # beside which no difference would be large
    scale = float(left.masked_fill(filled, 0.0).nan_to_num(0.0, 0.0, 0.0).abs().max())
    is_short = expected.dtype in (torch.float16, torch.bfloat16)
    allowed = (0.05 if is_short else 1e-3) * scale if expected.is_floating_point() else 0.0
    # Written so that a NaN on one side differs.
    return "" if gap <= allowed else f"{name} differs by {gap:.3g}, with values up to {scale:.3g}"


def _disagreement(
    model: nn.Module, inputs: Mapping[str, Tensor], expected: dict[str, Tensor], found: str
) -> CaptureError:
    dropping = _Dropping()
    with dropping:
        again = _of_model(model, inputs)
    if places := list(dropping.places):
        listed, hint = f"; dropout that ignores the mode runs in {', '.join(places[:5])}", _DROPS
    elif places := _mode_reads(model):
        listed, hint = f"; self.training is read in {', '.join(places[:5])}", _HINT
    elif _difference(expected, again):
        listed, hint = "; called a second time, the model gives something else, too", _CHANGES
    else:
        listed, hint = "", _NO_READ
    return CaptureError(
        f"in evaluation mode the graph computes something else than the model: {found}{listed}",
        who="capture",
        where=places[0] if places else type(model).__name__,
        hint=hint,
    )


class _Dropping(TorchFunctionMode):
    """Notes where dropout runs while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _drops(func, args, kwargs or {}):
            self.places[place(traceback.walk_stack(sys._getframe()))] = None
        return func(*args, **(kwargs or {}))


def _drops(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if func is nn.functional.scaled_dot_product_attention:
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if "dropout" not in getattr(func, "__name__", ""):
        return False
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return bool(rate and kwargs.get("training", args[2] if len(args) > 2 else True))


def _mode_reads(model: nn.Module) -> list[str]:
    """Return where classes of the model read ``self.training``, those of libraries last."""
    classes = {cls: None for module in model.modules() for cls in type(module).__mro__}
    asking = [cls for cls in classes if cls not in _FOLLOWED]
    asking.sort(key=lambda cls: cls.__module__.partition(".")[0] in ("transformers", "torch"))
    functions = (f for cls in asking for f in vars(cls).values() if inspect.isfunction(f))
    return list(dict.fromkeys(place for f in functions for place in _reads_in(f)))


def _reads_in(function: Any) -> Iterator[str]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:  # it wraps a callable that is no function
        return
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD_ATTR") and step.argval == "training":
            line = step.positions.lineno if step.positions else code.co_firstlineno
            yield f"{function.__qualname__} ({Path(code.co_filename).name}:{line})"
