"""Plots as inline SVG, so that a report is one file without scripts or network.

Every function takes plain numbers and returns an ``<svg>`` element as text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sparsefx.extras import need
from sparsefx.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_plot", "bar_plot", "curve_plot", "short_name"]

Point = tuple[float, float]
_PAGE, _LETTER = 10.0, 0.08
"""Inches: the width of a page, and of a letter of an axis."""

_MARK_LETTER, _MARK_ROW = 0.011, 0.065
"""Shares of a curve plot: of its width, a letter of a mark; of its height, a row of marks."""
_MOST_NAMES = 90
"""Names that can be read below a plot, side by side and upright."""

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "sparsefx",
    "font.family": "sans-serif",
}


def curve_plot(
    left: Mapping[str, Sequence[Point]],
    *,
    left_label: str,
    right: Mapping[str, Sequence[Point]] | None = None,
    right_label: str = "",
    marks: Mapping[str, float] | None = None,
) -> str:
    """Return curves over steps, with an optional second axis and marked places.

    Args:
        left: Curves for the left axis, by name, as (x, y) points; a NaN ends a line.
        left_label: Title of the left axis.
        right: Curves for the right axis, drawn dashed.
        right_label: Title of the right axis.
        marks: Vertical lines by name, e.g. where a stage begins.
    """
    figure, axes = _figure(8.2, 3.2)
    for colour, (name, points) in zip(COLOURS, left.items(), strict=False):
        axes.plot(*_columns(points), color=colour, label=name, linewidth=1.3)
    axes.set(xlabel="step", ylabel=left_label)
    handles = list(axes.get_lines())
    if right:
        with _style():
            other = axes.twinx()
        other.grid(False)
        other.spines.right.set_visible(True)
        for colour, (name, points) in zip(COLOURS[len(left) :], right.items(), strict=False):
            other.plot(*_columns(points), color=colour, label=name, linewidth=1.3, linestyle="--")
        other.set_ylabel(right_label)
        handles += other.get_lines()
    _mark(axes, marks or {})
    # Below the plot: curves may be anywhere inside it.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=len(handles), **below)
    return _svg(figure)


def _mark(axes: Any, marks: Mapping[str, float]) -> None:
    """Draw vertical lines; a name that the one before leaves no room stands a row higher."""
    for place in marks.values():
        axes.axvline(place, color="#888", linewidth=0.8)
    low, high = axes.get_xlim()
    ends: list[float] = []
    for name, place in marks.items():
        row = next((row for row, end in enumerate(ends) if end <= place), len(ends))
        ends[row : row + 1] = [place + (len(name) + 2) * _MARK_LETTER * (high - low)]
        height = 1.01 + _MARK_ROW * row
        axes.text(place, height, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8)


def bar_plot(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    label: str,
    limit: float | None = None,
) -> str:
    """Return grouped bars.

    Args:
        groups: Names along the x axis.
        series: Heights by series name, one for each group.
        label: Title of the y axis.
        limit: Upper end of the y axis.
    """
    crowded = len(groups) > 8
    bars = max(4.2, min(11.0, 1.6 + 0.22 * len(groups) * len(series)))
    figure, axes = _figure(bars if crowded else max(bars, _room(groups)), 3.0)
    width = 0.8 / max(1, len(series))
    for index, (name, heights) in enumerate(series.items()):
        places = [i + (index - (len(series) - 1) / 2) * width for i in range(len(groups))]
        axes.bar(places, heights, width, color=COLOURS[index % len(COLOURS)], label=name)
    _name_places(axes, groups)
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    if limit is not None:
        axes.set_ylim(0, limit)
    if len(series) > 1:
        # To the right: the power of ten of small numbers is written on the left.
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(frameon=False, fontsize=8, ncols=len(series), **above)
    return _svg(figure)


def accuracy_plot(names: Sequence[str], values: Sequence[tuple[float, float, float]]) -> str:
    """Return metric values with their intervals, as (value, low, high) times 100."""
    figure, axes = _figure(max(4.6, _room(names)), 3.0)
    for index, (value, low, high) in enumerate(values):
        colour = COLOURS[index % len(COLOURS)]
        spread = [[value - low], [high - value]]
        axes.errorbar([index], [value], yerr=spread, fmt="o", color=colour, capsize=5)
        axes.annotate(f"{value:.1f}", (index, value), xytext=(7, -3), textcoords="offset points")
    _name_places(axes, names)
    axes.set_xlim(-0.5, len(names) - 0.3)
    axes.set_ylabel("score x 100, with 95 % interval")
    return _svg(figure)


def _room(names: Sequence[str]) -> float:
    """Return the width in inches at which names stand side by side, as far as a page is wide."""
    return min(_PAGE, 0.8 + len(names) * (0.2 + _LETTER * max(map(len, names), default=0)))


def _name_places(axes: Any, names: Sequence[str]) -> None:
    """Write names along the x axis, the steeper the less room each has; of very many, some."""
    places = range(len(names))
    if len(names) > 48:
        step = -(-len(names) // _MOST_NAMES)
        axes.set_xticks(places[::step], names[::step], rotation=90, fontsize=6.5)
    elif len(names) > 8 or _room(names) == _PAGE:
        axes.set_xticks(places, names, rotation=60 if len(names) > 8 else 20, ha="right")
    else:
        axes.set_xticks(places, names)


def short_name(weight: str) -> str:
    """Return the layer number and the last telling parts of a weight's name, for an axis.

    >>> short_name("bert.encoder.layer.0.attention.self.query.weight"), short_name("head.weight")
    ('0.attention.query', 'head')
    >>> short_name("weight")
    'weight'
    """
    parts = [part for part in weight.split(".") if part not in ("weight", "self", "dense")]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[number:] if number is not None else parts[-2:]) or weight


def _style() -> AbstractContextManager[None]:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    need("report", who="report")
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL)
