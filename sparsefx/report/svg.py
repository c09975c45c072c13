"""A small canvas for figures: SVG text, no dependencies, no scripts."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field

__all__ = ["COLOURS", "Axis", "Canvas", "plain", "short"]

# Colours that stay apart for colour-blind readers (Okabe and Ito), and three quieter ones.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7d5ba6", "#8a6d4f",
    "#7a8087",
)  # fmt: skip


def short(value: float) -> str:
    """A number with three digits and an SI letter.

    >>> short(12345.0), short(0.5), short(0)
    ('12.3k', '0.5', '0')
    """
    if value == 0:
        return "0"
    power = min(max(math.floor(math.log10(abs(value)) / 3), 0), 5)
    text = f"{value / 1000**power:.3g}"
    return text + ("", "k", "M", "G", "T", "P")[power]


def plain(value: float, decimals: int) -> str:
    """A number with so many decimals, or with more where three digits would not be left.

    >>> plain(1234.5, 2), plain(0.00006468, 2), plain(0, 2)
    ('1,234.50', '0.0000647', '0.00')
    """
    if 0 < abs(value) < 1:
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


@dataclass
class Axis:
    """From values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low or 1)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high))
            steps = (1, 2, 5) if self.high / self.low < 1000 else (1,)
            found = [n * 10.0**power for power in range(first, last + 1) for n in steps]
            return [value for value in found if self.low <= value <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low or 1) / 2))
        while (self.high - self.low) / step > 7:
            step *= 2.5 if str(step)[0] == "2" else 2
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


@dataclass
class Canvas:
    """Collects shapes; `render` gives the SVG element."""

    width: float
    height: float
    title: str
    _parts: list[str] = field(default_factory=list)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, tip: str = "", opacity: float = 1
    ) -> None:
        """A filled rectangle, with a tool tip."""
        told = f"<title>{html.escape(tip)}</title>" if tip else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.3):.1f}" height="{h:.1f}" '
            f'fill="{fill}" fill-opacity="{opacity:g}">{told}</rect>'
        )

    def line(self, points: list[tuple[float, float]], colour: str, dash: str = "") -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        )

    def dot(self, x: float, y: float, colour: str, tip: str = "", radius: float = 3.5) -> None:
        """A point, with a tool tip."""
        told = f"<title>{html.escape(tip)}</title>" if tip else ""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{told}</circle>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "start",
        size: float = 11.5,
        turn: int = 0,
    ) -> None:
        """A line of text."""
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="#3b4048"{turned}>{html.escape(text)}</text>'
        )

    def axes(self, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
        """Draw both axes with ticks and labels."""
        for value in x.ticks():
            self.line([(x(value), y.start), (x(value), y.end)], "#e6e9ed")
            self.text(x(value), y.start + 15, short(value), "middle")
        for value in y.ticks():
            self.line([(x.start, y(value)), (x.end, y(value))], "#e6e9ed")
            self.text(x.start - 6, y(value) + 4, short(value), "end")
        self.text((x.start + x.end) / 2, y.start + 33, x_label, "middle")
        self.text(x.start - 46, (y.start + y.end) / 2, y_label, "middle", turn=-90)

    def render(self) -> str:
        """The SVG element."""
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" '
            f'role="img" aria-label="{html.escape(self.title)}" '
            'font-family="system-ui, sans-serif">' + "".join(self._parts) + "</svg>"
        )
