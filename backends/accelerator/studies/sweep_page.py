"""A sweep as a table and a page with plots."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from sparsefx.backends.accelerator.studies.sweep import PAGE, SHEET, Point, Result
from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.svg import COLOURS, Axis, Canvas

__all__ = ["sweep_table", "write_sweep"]


def write_sweep(results: list[Result], folder: Path) -> tuple[Path, Path]:
    """Write `sweep.csv` and `sweep.html` (table and plot) and return their paths."""
    columns = [*asdict(results[0].point), *(k for k in asdict(results[0]) if k != "point")]
    rows = [{**asdict(r.point), **{k: v for k, v in asdict(r).items() if k != "point"}}
            for r in results]  # fmt: skip
    sheet = folder / SHEET
    with sheet.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
    page = Page("Sweep", f"{len(results)} simulations; none is a measurement.")
    drawn = [r for r in results if r.point.pattern != "saved" and not r.error]
    saved = [r for r in results if r.point.pattern == "saved" and not r.error]
    if drawn:
        page.section("Throughput against compression", _curves(drawn))
    if saved:
        page.section("Throughput of the saved Programs", _bars(saved))
    failed = [r for r in results if r.error]
    if failed:
        told = [f"{r.point.arch}, {r.point.size}, {r.point.ratio:g}x: {r.error}" for r in failed]
        page.section("Not simulated", *(paragraph(text) for text in told))
    page.section("Results", table(*sweep_table(results)))
    return sheet, page.write(folder / PAGE)


_SHOWN: Final = (
    "architecture", "model", "compression", "zeros", "batch x tokens", "ms", "sequences/s", "mJ",
    "external MB", "multipliers busy",
)  # fmt: skip


def sweep_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table as text; the CSV file has every figure in full."""
    return list(_SHOWN), [_shown(result) for result in results]


def _shown(result: Result) -> list[str]:
    point = result.point
    figures = (
        f"{result.milliseconds:,.4g}",
        f"{result.sequences_per_second:,.1f}",
        f"{result.millijoules:,.3f}",
        f"{result.dram_megabytes:,.3f}",
        f"{result.utilisation:.1%}",
    )
    return [
        point.arch,
        _model(point),
        f"{point.ratio:g}x",
        point.pattern,
        f"{point.batch} x {point.tokens}",
        *(figures if not result.error else ("",) * len(figures)),
    ]


def _model(point: Point) -> str:
    """The size, or the last two parts of a saved Program's path."""
    return "/".join(Path(point.size).parts[-2:]) if point.pattern == "saved" else point.size


def _curves(results: list[Result]) -> str:
    """Sequences a second by compression, a line for each architecture and pattern."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        name = f"{result.point.arch}, {result.point.pattern}"
        lines.setdefault(name, []).append((result.point.ratio, result.sequences_per_second))
    canvas = Canvas(900, max(380, 58 + 18 * len(lines)), "throughput against compression")
    values = [v for points in lines.values() for _, v in points]
    most = max(x for points in lines.values() for x, _ in points)
    x = Axis(0, most * 1.05, 80, 640)
    y = Axis(min(values) / 1.5, max(values) * 1.5, 330, 15, log=True)
    canvas.axes(x, y, "dense over remaining weights", "sequences a second")
    groups, row = _coinciding(lines), 0
    for number, names in enumerate(groups):
        colour, told = COLOURS[number % len(COLOURS)], {name: dict(lines[name]) for name in names}
        points = sorted(told[names[0]].items())
        dash, how = ("", "") if number < len(COLOURS) else ("5 4", " (dashed)")
        canvas.line([(x(a), y(b)) for a, b in points], colour, dash)
        for a, b in points:
            tip = "\n".join(f"{name}: {a:g}x, {found[a]:,.1f}" for name, found in told.items())
            canvas.dot(x(a), y(b), colour, tip)
        canvas.rect(660, 20 + 18 * row, 11, 18 * len(names) - 7, colour)
        for name in names:
            canvas.text(677, 30 + 18 * row, name + how)
            row += 1
    if len(groups) < len(lines):
        canvas.text(660, 34 + 18 * row, "beside one bar: equal within 1 %")
    return canvas.render()


def _coinciding(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[list[str]]:
    """The names, those together whose lines would hide one another."""
    found: list[list[str]] = []
    for name, points in lines.items():
        group = next((names for names in found if _is_hidden(lines[names[0]], points)), None)
        if group is None:
            found.append([name])
        else:
            group.append(name)
    return found


def _is_hidden(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> bool:
    """Whether all points of two lines differ by less than what is seen, a pixel."""
    pairs = [*zip(sorted(first), sorted(second), strict=False)]
    near = all(a == c and math.isclose(b, d, rel_tol=0.01) for (a, b), (c, d) in pairs)
    return near and len(first) == len(second)


def _bars(results: list[Result]) -> str:
    """Sequences a second, a bar for each Program and architecture, with its compression."""
    archs = list(dict.fromkeys(result.point.arch for result in results))
    canvas = Canvas(900, 46 + 20 * len(results), "throughput of saved Programs")
    x = Axis(0, max(result.sequences_per_second for result in results), 330, 780)
    for row, result in enumerate(results):
        point, y = result.point, 8 + 20 * row
        name = f"{_model(point)} ({point.ratio:g}x) on {point.arch}"
        canvas.text(324, y + 12, name[-52:], "end")
        colour = COLOURS[archs.index(point.arch) % len(COLOURS)]
        canvas.rect(330, y, x(result.sequences_per_second) - 330, 14, colour, point.size)
        canvas.text(
            x(result.sequences_per_second) + 6, y + 12, f"{result.sequences_per_second:,.1f}"
        )
    canvas.text(555, 30 + 20 * len(results), "sequences a second", "middle")
    return canvas.render()
