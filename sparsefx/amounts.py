"""Numbers of steps in recipes: plain, or as a share of the steps of the stage, such as ``65%``.

A share may stand for any step option of a pass too: ``magnitude-prune{end=65%}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sparsefx.errors import RecipeError
from sparsefx.pipeline import Pipeline

__all__ = ["check_amount", "parse_pipeline", "resolve"]

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_SHARE_OPTION = re.compile(r"(?<==)\s*" + _SHARE.pattern)


def check_amount(value: int | str) -> int | str:
    """Return ``value`` if it is a number of steps or a share; else raise ValueError."""
    if isinstance(value, str) and not _SHARE.fullmatch(value):
        raise ValueError(f"expected a number of steps or a share such as '10%', got {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"expected at least 0, got {value}")
    return value


def resolve(amount: int | str, steps: int) -> int:
    """Return a number of steps; a share is rounded, and is at least 1 unless it is 0 %.

    >>> resolve("65%", 1000), resolve(20, 1000), resolve("1%", 30)
    (650, 20, 1)
    """
    if isinstance(amount, int):
        return amount
    match = _SHARE.fullmatch(amount)
    share = float(match.group(1)) if match else 0.0
    if share > 100:
        raise RecipeError(
            f"{amount!r} is more than all steps of the stage", hint="give a share up to 100%"
        )
    return max(1, round(steps * share / 100)) if share else 0


def parse_pipeline(texts: Iterable[str], steps: int | None) -> Pipeline:
    """Read the passes of a stage; option values such as ``65%`` become numbers of steps.

    >>> str(parse_pipeline(["fixpoint{max_rounds=10%}"], 40))
    'fixpoint{max_rounds=4}'

    Raises:
        SpecError: A pass or option is unknown.
        RecipeError: A share is given in a stage that does not train.
    """
    text = ",".join(texts)
    share = _SHARE_OPTION.search(text)
    if share and steps is None:
        raise RecipeError(
            f"'{share.group().strip()}' is a share of the stage's steps, but it does not train",
            hint="give a number, or training settings",
        )
    return Pipeline.parse(_SHARE_OPTION.sub(lambda m: str(resolve(m[1] + "%", steps or 0)), text))
