"""The HTML page and its plots."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.plots import accuracy_plot, bar_plot, curve_plot
from sparsefx.report.run import run_page
from sparsefx.train.results import RunResult


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("src", "href") and value and not value.startswith("#"):
                self.outside.append(value)


def test_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    page = Page("A <b> title", "lead & more")
    page.section(
        "Curves",
        curve_plot(
            {"loss": [(0, 2.0), (10, 1.0)]},
            left_label="loss",
            right={"sparsity": [(0, 0.0), (10, 0.9)]},
            right_label="share of zeros",
            marks={"lock": 5},
        ),
        bar_plot(["a", "b"], {"one": [1, 2], "two": [2, 3]}, label="MB"),
        accuracy_plot(["dense", "sparse"], [(84.0, 82.0, 86.0), (83.1, 81.0, 85.0)]),
        table(["x", "y"], [["1 < 2", "3"]]),
        paragraph("a & b"),
    )
    text = page.write(tmp_path / "r" / "report.html", "made by hand").read_text()
    links = Links()
    links.feed(text)
    assert links.outside == []
    assert "<script" not in text
    assert text.count("<svg") == 3
    assert "A &lt;b&gt; title" in text
    assert "1 &lt; 2" in text
    assert "share of zeros" in text


def test_a_run_without_scores_has_a_page(tmp_path: Path) -> None:
    page = run_page(RunResult("silent", tmp_path, ()), (), title="silent", lead="")
    assert "How it was made" in page.render()


def test_plots_are_deterministic() -> None:
    first, second = (bar_plot(["a"], {"s": [1.0]}, label="x") for _ in range(2))
    assert first == second
