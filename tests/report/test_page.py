"""The HTML page and its plots."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from sparsefx.frontend.capture import capture
from sparsefx.pipeline import Pipeline
from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.plots import accuracy_plot, bar_plot, curve_plot, short_name
from sparsefx.report.run import ReportRow, Size, run_page
from sparsefx.report.svg import Canvas
from sparsefx.train.metrics import Score
from sparsefx.train.results import RunResult, StageResult
from tests.tiny_models import example_batch, tiny


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


def test_names_on_an_axis_are_short_and_short_cells_stay_on_a_line() -> None:
    names = [f"bert.encoder.layer.{i}.attention.output.dense.weight" for i in range(12)]
    short = [short_name(name) for name in names]
    assert short[-1] == "11.attention.output"
    text = table(["node", "why"], [["lock-step-32", "a long reason " * 4]])
    assert '<td class="whole">lock-step-32</td><td>a long' in text


def test_a_run_without_scores_has_a_page(tmp_path: Path) -> None:
    page = run_page(RunResult("silent", tmp_path, ()), (), title="silent", lead="")
    assert "How it was made" in page.render()


def test_ratios_are_against_the_model_as_given() -> None:
    given = capture(tiny("bert-cls").eval(), example_batch())
    half = Pipeline.parse("drop-layers{keep=(1)}").run(given)
    alone, against = Size.of(half), Size.of(half, given)
    assert alone.paper_ratio == 1.0
    assert against.paper_ratio == 2.0
    assert against.stored_ratio > 1.3 > alone.stored_ratio


def test_a_short_stage_has_a_curve_and_zeros_are_not_drawn_where_there_are_none(
    tmp_path: Path,
) -> None:
    lines = [
        {"stage": "dense", "step": step, "loss": 1 / step, "sparsity": None} for step in (1, 2)
    ]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(written)
    stage = StageResult("dense", tmp_path, 2, None, {}, None, ())
    size = Size({"0.query": 0.0}, 0.0, 0.0, 1, 2, 1.0, 1.0)
    score = Score("pearson_spearman", 0.8, 0.7, 0.9, 150, {})
    row = ReportRow("dense", score, None, size, None)
    text = run_page(RunResult("r", tmp_path, (stage,)), (row,), title="r", lead="").render()
    assert "<h2>pearson_spearman</h2>" in text
    assert "No linear of the encoder has zeros." in text
    assert text.count("<svg") == 3  # score, loss, sizes


def test_long_names_have_room() -> None:
    def wide(*names: str) -> float:
        found = re.search(
            r'width="([\d.]+)pt"', accuracy_plot(names, [(84.0, 82.0, 86.0)] * len(names))
        )
        assert found
        return float(found[1]) / 72

    stages = ("teacher-preparation", "sparse-pretraining", "transfer", "quantization-aware")
    assert wide("dense", "sparse") < 5
    assert wide(*stages) > 4 * 19 * 0.08
    assert wide(*stages, *stages) <= 10
    many = bar_plot([f"{i}.attention.output" for i in range(72)], {"zeros": [1.0] * 72}, label="x")
    assert "rotate(-90)" in many


def test_names_of_very_many_bars_have_room() -> None:
    names = [f"{i // 6}.attention.output" for i in range(144)]
    plot = bar_plot(names, {"zeros": [1.0] * 144}, label="x")
    assert plot.count("rotate(-90)") == 72


def test_names_of_short_stages_do_not_run_into_each_other() -> None:
    marks = {"general": 0, "pretrained": 1000, "teacher": 2000, "sparse": 2004, "int8": 2030}
    curve = {"loss": [(float(step), 1.0) for step in range(2040)]}
    plot = curve_plot(curve, left_label="loss", marks=marks)

    def height(name: str) -> float:
        found = re.search(rf'y="([-\d.]+)"[^>]*>\s*(?:<[^>]*>)?{name}<', plot)
        assert found, name
        return float(found[1])

    assert height("general") == height("pretrained") == height("teacher")
    assert height("teacher") > height("sparse") + 8 > height("int8") + 16


def test_a_figure_is_a_file_of_its_own_and_scrolls_on_a_narrow_screen() -> None:
    canvas = Canvas(10, 10, "a figure")
    assert ElementTree.fromstring(canvas.render()).tag == "{http://www.w3.org/2000/svg}svg"
    page = Page("p")
    page.section("s", canvas.render())
    assert '<div class="scroll"><svg' in page.render()


def test_plots_are_deterministic() -> None:
    first, second = (bar_plot(["a"], {"s": [1.0]}, label="x") for _ in range(2))
    assert first == second
