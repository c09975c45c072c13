"""What pruning one weight alone does to the loss, measured: a file of curves by weight.

    # YAML or JSON: a weight's name, then pairs of sparsity and loss increase
    encoder.layer.0.attention.self.query.weight: [[0.5, 0.001], [0.8, 0.01], [0.9, 0.04]]
    encoder.layer.0.attention.self.key.weight: [[0.5, 0.0], [0.9, 0.002]]

Whatever measures them (a sweep over layers, a Taylor estimate, a function of one's own) writes this
file; allocate-sparsity reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparsefx.errors import DataError
from sparsefx.storage.files import write_text

__all__ = ["LossCurve", "read_loss_curves", "write_loss_curves"]

_MADE_BY = "sparsefx sensitivity MODEL --data FILE writes one, curves.json"


@dataclass(frozen=True)
class LossCurve:
    """Loss increase by sparsity, as pairs; nothing is lost at sparsity 0.

    >>> LossCurve(((0.5, 0.1), (0.9, 0.5))).at(0.7)
    0.3

    Raises:
        ValueError: When a sparsity is not in 0..1 or comes twice, or a number is not finite.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        places = [sparsity for sparsity, _ in self.points]
        if not places:
            raise ValueError("expected at least one pair of sparsity and loss increase")
        if len(set(places)) < len(places) or not all(0 <= place <= 1 for place in places):
            raise ValueError(f"expected different sparsities in 0..1, found {places}")
        if not all(math.isfinite(loss) for _, loss in self.points):
            raise ValueError("expected finite loss increases")

    def at(self, sparsity: float) -> float:
        """Loss increase at a sparsity: straight lines between the points, and on behind the last.

        A measured loss may fall by chance; the curve never does.
        """
        known = dict([(0.0, 0.0), *sorted(self.points)])
        places = np.array(list(known))
        losses = np.maximum.accumulate(np.array(list(known.values())))
        if sparsity <= places[-1] or len(places) < 2:
            return round(float(np.interp(sparsity, places, losses)), 12)
        slope = (losses[-1] - losses[-2]) / (places[-1] - places[-2])
        return round(float(losses[-1] + slope * (sparsity - places[-1])), 12)


def read_loss_curves(path: str | Path) -> dict[str, LossCurve]:
    """Read the curves of a YAML or JSON file, by weight.

    Raises:
        DataError: When the file is not there, or something in it is no curve.
    """
    file = Path(path)
    if not file.is_file():
        inside = file / "curves.json"
        raise DataError(
            "it is a folder" if file.is_dir() else "there is no such file",
            who="sensitivity",
            where=str(path),
            hint=f"name {inside}" if inside.is_file() else _MADE_BY,
        )
    text = file.read_text(encoding="utf-8")
    try:
        tree: Any = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"cannot be read: {error}", who="sensitivity", where=str(path)) from error
    if not isinstance(tree, dict) or not tree:
        expected = "expected weights with pairs of sparsity and loss increase"
        raise DataError(expected, who="sensitivity", where=str(path), hint=_MADE_BY)
    found = {}
    for name, pairs in tree.items():
        try:
            found[str(name)] = LossCurve(tuple((float(a), float(b)) for a, b in pairs))
        except (TypeError, ValueError) as error:
            why = "expected pairs of sparsity and loss increase: " * isinstance(error, TypeError)
            raise DataError(
                f"{why}{error}", who="sensitivity", where=f"{path}: {name}", hint=_MADE_BY
            ) from error
    return found


def write_loss_curves(curves: Mapping[str, LossCurve], path: str | Path) -> Path:
    """Write curves to a YAML file, or a JSON one by its suffix, and return the path."""
    file = Path(path)
    tree = {name: [list(point) for point in curve.points] for name, curve in curves.items()}
    text = json.dumps(tree, indent=1)
    if file.suffix != ".json":
        text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    write_text(file, text)
    return file
