"""The ramps of Intel Neural Compressor 2.x, and the ramp of sparsefx that comes nearest to each.

``schedulers.py`` of that tool has four (x: share of the ramp that is done, s: final sparsity)::

    linear  s x        cube  s x^3        cos  s (1 - cos(pi x / 2))        exp  1 - (1 - s)^x

Ours are ``s (1 - (1 - x)^exponent)``: a line is among them, the others are not. ``cube`` and
``cos`` prune most at the end, which is the reverse of the cubic ramp of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["nearest_exponent"]

_POINTS = [point / 50 for point in range(51)]
_EXPONENTS = [twentieth / 20 for twentieth in range(2, 101)]


def nearest_exponent(decay: str, sparsity: float) -> tuple[float, float]:
    """Return the exponent whose ramp comes nearest, and how far off it is at most.

    Args:
        decay: Name of the ramp.
        sparsity: At its end.

    Raises:
        KeyError: There is no ramp of this name.

    >>> [round(value, 3) for value in nearest_exponent("linear", 0.9)]
    [1.0, 0.0]
    >>> [round(value, 3) for value in nearest_exponent("exp", 0.9)]
    [2.15, 0.032]
    """
    ramps: dict[str, Callable[[float], float]] = {
        "linear": lambda x: sparsity * x,
        "cube": lambda x: sparsity * x**3,
        "cos": lambda x: sparsity * (1.0 - math.cos(math.pi / 2 * x)),
        "exp": lambda x: 1.0 - (1.0 - sparsity) ** x,
    }
    ramp = ramps[decay]

    def distance(exponent: float) -> float:
        ours = (sparsity * (1.0 - float((1.0 - x) ** exponent)) for x in _POINTS)
        return max(abs(mine - ramp(x)) for mine, x in zip(ours, _POINTS, strict=True))

    found = min(_EXPONENTS, key=distance)
    return found, distance(found)
