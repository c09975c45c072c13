"""Calls of passes outside a pipeline: what they raise says which pass, which hook and when."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sparsefx.errors import PassError, SparsefxError
from sparsefx.passbase import Contract, Pass

__all__ = ["active_passes", "calling", "contract_of", "raised_at"]

_TORCH, _SPARSEFX = Path(torch.__file__).parent, Path(__file__).parent
_STEP = "after_step"
_CALLED = (_STEP, "mask_window", "taught")
"""The methods of an active pass that training calls; ``taught`` is no method of every pass."""


def contract_of(item: Pass, place: str = "pass") -> Contract:
    """Return the contract of a pass.

    Args:
        item: The pass.
        place: As for :func:`calling`.

    Raises:
        PassError: From what its method raised, or because it returned something else.
    """
    with calling(item, "contract", place):
        found: object = item.contract()
        if not isinstance(found, Contract):
            raise PassError(
                f"it returned {found!r}, not a Contract",
                hint="return Contract(requires=..., establishes=...)",
            )
    return found


def raised_at(error: BaseException, item: Pass) -> str:
    """Return the file and line of a pass from which an error came.

    That is the last line outside of torch and sparsefx, which only refuse what the pass gave them;
    for a pass of sparsefx the last line outside of torch.
    """
    homes = [_TORCH] if type(item).__module__.startswith("sparsefx.") else [_TORCH, _SPARSEFX]
    frames = traceback.extract_tb(error.__traceback__)
    own = [at for at in frames if not any(home in Path(at.filename).parents for home in homes)]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def active_passes(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    """Return passes as they are kept in ``program.active``.

    Raises:
        PassError: One is no pass, or has no method that training calls: it would do nothing.
    """
    found = tuple(passes)
    for index, item in enumerate(found):
        given: object = item
        if not isinstance(given, Pass):
            raise PassError(
                f"{given!r} is no pass",
                where=f"program.active[{index}]",
                hint="a class of passes is called to make one",
            )
        cls = type(given)
        if all(getattr(cls, name, None) is getattr(Pass, name, None) for name in _CALLED):
            raise PassError(
                f"'{given}' would do nothing: {cls.__name__} has no {', '.join(_CALLED)}",
                where=f"program.active[{index}]",
                hint=_misspelt(cls),
            )
    return found


def _misspelt(cls: type[Pass]) -> str:
    own = [name for name in dir(cls) if not hasattr(Pass, name)]
    near = difflib.get_close_matches(_STEP, own, 1)
    if near:
        return f"rename {near[0]} to {_STEP}"
    return f"give it {_STEP}(program, step), or do not put it into program.active"


@contextmanager
def calling(item: Pass, hook: str, place: str, step: int | None = None) -> Iterator[None]:
    """Within this context, where one hook of a pass is called, put its place in front of errors.

    What a check of a recipe refuses stays as it is: it is found by the stage that it is of.

    Args:
        item: The pass.
        hook: Name of the method or property.
        place: Which of the passes it is, e.g. ``active pass 0``.
        step: Optimizer steps done when it is called, in training.

    Raises:
        PassError: From what the hook raised, if that was no error of sparsefx.
    """
    who = f"{place} '{item}'"
    where = hook if step is None else f"{hook}, step {step}"
    try:
        yield
    except SparsefxError as error:
        if not error.who or (error.who == item.name and step is not None):
            error.who = who
            error.where = error.where or where
        elif step is not None:
            error.who = f"{who}, {where}: {error.who}"
        raise
    except MemoryError:
        raise  # of the machine, and told as such
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine too
        raise PassError(
            f"{type(error).__name__}: {error}",
            who=who,
            where=where,
            hint=f"a fault of the pass, raised at {raised_at(error, item)}",
        ) from error
