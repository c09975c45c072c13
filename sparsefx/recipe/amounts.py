"""Numbers of steps in recipes: plain, or as a share of the steps of the stage, such as ``65%``.

A share may stand for any step option of a pass too: ``magnitude-prune{end=65%}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sparsefx.errors import RecipeError, SpecError
from sparsefx.pipeline import Pipeline

__all__ = [
    "NOMINAL_STEPS",
    "Shares",
    "check_amount",
    "check_interval",
    "parse_pipeline",
    "resolve",
]

NOMINAL_STEPS = 100_000
"""With so many steps shares are resolved where those of a stage are not known, or do not matter."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_SHARE_OPTION = re.compile(r"(?P<key>\w+)\s*=\s*(?P<share>\d+(?:\.\d+)?\s*%)")


def check_amount(value: int | str) -> int | str:
    """Return ``value`` if it is a number of steps or a share; else raise ValueError."""
    share = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and not share:
        raise ValueError(f"expected a number of steps or a share such as '10%', got {value!r}")
    if share and float(share.group(1)) > 100:
        raise ValueError(f"expected a share of up to 100%, got {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"expected at least 0, got {value}")
    return value


def check_interval(value: int | str) -> int | str:
    """Return ``value`` if it is an amount of at least one step; else raise ValueError."""
    if resolve(check_amount(value), 100) == 0:
        raise ValueError(f"expected at least one step, got {value!r}; null is never")
    return value


def resolve(amount: int | str, steps: int) -> int:
    """Return a number of steps; a share is rounded, and is at least 1 unless it is 0 %.

    >>> resolve("65%", 1000), resolve(20, 1000), resolve("1%", 30)
    (650, 20, 1)

    Raises:
        RecipeError: The share is above 100 %.
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


@dataclass(frozen=True)
class Shares:
    """Passes in text form, once as they were written and once with numbers for the shares.

    Attributes:
        written: The text with shares, such as ``end=65%``.
        resolved: The text with numbers of steps in their place.
        places: Option, share and number, and where the number begins in ``resolved``.
    """

    written: str
    resolved: str
    places: tuple[tuple[str, str, str, int], ...]

    @classmethod
    def of(cls, texts: Iterable[str], steps: int | None) -> Shares:
        """Resolve the shares of a stage that trains for ``steps``.

        Raises:
            RecipeError: The stage does not train, or a share is above 100 %.
        """
        written = ",".join(texts)
        resolved, end = "", 0
        places = []
        for match in _SHARE_OPTION.finditer(written):
            share = match["share"]
            if steps is None:
                raise RecipeError(
                    f"{share!r} is a share of the stage's steps, but it does not train",
                    hint="give a number, or training settings",
                )
            number = str(resolve(share, steps))
            resolved += written[end : match.start("share")]
            places.append((match["key"], share, number, len(resolved)))
            resolved += number
            end = match.end()
        return cls(written, resolved + written[end:], tuple(places))

    def restore(self, text: str) -> str:
        """Return a message with the shares as they were written.

        >>> Shares.of(["magnitude-prune{end=50%}"], 100_000).restore("end=50000: too late")
        'end=50%: too late'
        """
        for key, share, number, _ in self.places:
            text = re.sub(rf"\b{key}={number}\b", f"{key}={share}", text)
        return text

    def position(self, position: int) -> int:
        """Return the place in ``written`` of a place in ``resolved``."""
        shift = 0
        for _, share, number, start in self.places:
            if position >= start + len(number):
                shift += len(share) - len(number)
            elif position > start:
                shift += start - position
        return position + shift


def parse_pipeline(texts: Iterable[str], steps: int | None) -> Pipeline:
    """Read the passes of a stage; option values such as ``65%`` become numbers of steps.

    >>> str(parse_pipeline(["fixpoint{passes=simplify,max_rounds=10%}"], 40))
    "fixpoint{passes='simplify',max_rounds=4}"

    Raises:
        SpecError: A pass or option is unknown or refused; shows the text as it was written.
        RecipeError: A share is given in a stage that does not train.
    """
    shares = Shares.of(texts, steps)
    try:
        return Pipeline.parse(shares.resolved)
    except SpecError as error:
        raise SpecError(
            shares.restore(error.why),
            text=shares.written,
            position=shares.position(error.position),
            hint=shares.restore(error.hint),
        ) from error
