"""Numbers of a machine: a value with its unit, and how far it can be trusted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator

__all__ = [
    "Bytes",
    "Count",
    "Fraction",
    "Hertz",
    "OperationsPerSecond",
    "PerSecond",
    "Picojoule",
    "PicojoulePerByte",
    "Quantity",
    "Seconds",
    "Status",
    "Watt",
    "Whole",
]

Status = Literal["published", "derived", "assumed", "suspect", "fitted"]
"""Where a number comes from.

published: a data sheet or paper prints it. derived: computed from published ones. assumed: chosen
because something had to be. suspect: printed, and hard to believe. fitted: set so that a published
result comes out.
"""

STATUSES: Final[tuple[str, ...]] = get_args(Status)

_SCALES: Final[dict[str, float]] = {
    "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "m": 1e-3, "u": 1e-6, "n": 1e-9,
}  # fmt: skip

_BASES: Final[dict[str, tuple[str, float, tuple[str, ...]]]] = {
    # written unit: dimension, factor, prefixes that make sense
    "B": ("bytes", 1.0, ("", "K", "M", "G", "Ki", "Mi", "Gi")),
    "B/s": ("bytes per second", 1.0, ("", "M", "G", "T")),
    "Hz": ("hertz", 1.0, ("", "M", "G")),
    "s": ("seconds", 1.0, ("", "m", "u", "n")),
    "op/s": ("operations per second", 1.0, ("", "G", "T", "P")),
    "pJ": ("picojoules", 1.0, ("",)),
    "pJ/B": ("picojoules per byte", 1.0, ("",)),
    "pJ/bit": ("picojoules per byte", 8.0, ("",)),
    "W": ("watts", 1.0, ("", "m")),
    "%": ("fraction", 0.01, ("",)),
    "": ("count", 1.0, ("",)),
}

_UNITS: Final[dict[str, tuple[str, float]]] = {
    prefix + base: (dimension, factor * _SCALES[prefix])
    for base, (dimension, factor, prefixes) in _BASES.items()
    for prefix in prefixes
}

_NUMBER = re.compile(r"^\s*([-+]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(\S*)\s*$")


@dataclass(frozen=True)
class Quantity:
    """A number in base units (bytes, seconds, hertz, pJ) with status and source.

    >>> q = Quantity.parse("82 GB/s | published | S4 product page")
    >>> q.value, q.dimension, q.status
    (82000000000.0, 'bytes per second', 'published')
    """

    value: float
    dimension: str
    status: Status
    source: str = ""

    @staticmethod
    def parse(text: str) -> Quantity:
        """Read `number unit | status | source`.

        Raises:
            ValueError: Saying which of the three parts is wrong.
        """
        number, *rest = (part.strip() for part in str(text).split("|", 2))
        match = _NUMBER.match(number)
        if not match:
            raise ValueError(f"{text!r} is not a number with a unit, such as '82 GB/s | published'")
        if match[2] not in _UNITS:
            raise ValueError(f"{match[2]!r} is not a known unit; known: {', '.join(_UNITS)}")
        if rest and rest[0] not in STATUSES:
            raise ValueError(f"{rest[0]!r} is not a status; known: {', '.join(STATUSES)}")
        if not rest:
            raise ValueError(
                f"{text!r} does not say where it comes from: add ' | status', "
                f"one of {', '.join(STATUSES)}"
            )
        dimension, factor = _UNITS[match[2]]
        value = float(match[1].replace("_", "")) * factor
        status: Any = rest[0]
        return Quantity(value, dimension, status, rest[1] if len(rest) > 1 else "")

    def scaled(self, factor: float) -> Quantity:
        """The same number, `factor` times as large; counts stay whole and at least 1."""
        value = self.value * factor
        if self.dimension == "count" and self.value == round(self.value):
            value = max(float(round(value)), 1.0)
        if self.dimension == "fraction":
            value = min(value, 1.0)
        return replace(self, value=value)

    @property
    def text(self) -> str:
        """The number with the unit that makes it shortest; parsing it gives the number back."""
        units = {u: factor for u, (name, factor) in _UNITS.items() if name == self.dimension}
        written = {unit: f"{self.value / factor:.15g}" for unit, factor in units.items()}
        exact = [u for u, number in written.items() if float(number) * units[u] == self.value]
        if not exact:
            unit = next(u for u, factor in units.items() if factor in (1.0, 0.01))
            return f"{self.value / units[unit]!r} {unit}".strip()
        best = min(exact, key=lambda u: (len(written[u]), abs(math.log(units[u]))))
        return f"{written[best]} {best}".strip()

    def __str__(self) -> str:
        return " | ".join(part for part in (self.text, self.status, self.source) if part)


def _reader(dimension: str, positive: bool, *, whole: bool = False) -> BeforeValidator:
    def read(raw: Any) -> Quantity:
        quantity = raw if isinstance(raw, Quantity) else Quantity.parse(raw)
        if quantity.dimension != dimension:
            raise ValueError(f"expected {dimension}, found {quantity.dimension} ({raw})")
        if positive and not quantity.value > 0:
            raise ValueError(f"must be more than zero, found {raw}")
        if quantity.value < 0:
            raise ValueError(f"must not be negative, found {raw}")
        if whole and quantity.value != round(quantity.value):
            raise ValueError(f"must be a whole number, found {raw}")
        if dimension == "fraction" and quantity.value > 1:
            raise ValueError(f"must be at most 100 %, found {raw}")
        return quantity

    return BeforeValidator(read)


Count = Annotated[Quantity, _reader("count", positive=True)]
Whole = Annotated[Quantity, _reader("count", positive=True, whole=True)]
Bytes = Annotated[Quantity, _reader("bytes", positive=True)]
PerSecond = Annotated[Quantity, _reader("bytes per second", positive=True)]
Hertz = Annotated[Quantity, _reader("hertz", positive=True)]
Seconds = Annotated[Quantity, _reader("seconds", positive=False)]
OperationsPerSecond = Annotated[Quantity, _reader("operations per second", positive=True)]
Fraction = Annotated[Quantity, _reader("fraction", positive=True)]
Picojoule = Annotated[Quantity, _reader("picojoules", positive=False)]
PicojoulePerByte = Annotated[Quantity, _reader("picojoules per byte", positive=False)]
Watt = Annotated[Quantity, _reader("watts", positive=False)]
