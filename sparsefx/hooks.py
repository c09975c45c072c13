"""Calls of passes outside a pipeline: what they raise says which pass, which hook and when."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparsefx.errors import PassError, SparsefxError

if TYPE_CHECKING:
    from sparsefx.passbase import Pass

__all__ = ["calling"]


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
        raise
    except MemoryError:
        raise  # of the machine, and told as such
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine too
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise PassError(
            f"{type(error).__name__}: {error}",
            who=who,
            where=where,
            hint=f"a fault of the pass, raised at {frame.filename}:{frame.lineno}",
        ) from error
