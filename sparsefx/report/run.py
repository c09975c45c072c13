"""The report of a run: one table and one page, made from what the run left on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.instruments.timing import Latency
from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.plots import accuracy_plot, bar_plot, curve_plot, short_name
from sparsefx.storage.places import is_program

if TYPE_CHECKING:
    from sparsefx.program import Program
    from sparsefx.train.metrics import Score
    from sparsefx.train.results import RunResult

__all__ = [
    "HEAD",
    "HOW_COUNTED",
    "ReportRow",
    "Size",
    "cells",
    "report_rows",
    "run_page",
    "scored_on",
]

HEAD = (
    "model",
    "score (95 % interval)",
    "against first",
    "zeros, encoder",
    "zeros, model",
    "stored MB",
    "smaller",
    "paper ratio",
    "ms a sentence",
)
"""The columns of the table; :func:`cells` fills them."""


HOW_COUNTED = (
    "Zeros are counted in the encoder's linears, as the papers do, and in the whole model. Stored "
    "bytes hold the whole model with its indices (non-zero values and one bit for each place, or "
    "dense where that is smaller). The paper ratio counts the encoder's non-zero values alone, "
    "without index. Both ratios are against the model that the run was given, in float32."
)
"""What stands below the table, so that nobody takes one count for another."""


@dataclass(frozen=True)
class ReportRow:
    """One evaluated stage.

    Attributes:
        name: Of the stage.
        score: On the test split.
        difference: Against the first stage, on the same examples; None for the first.
        size: Zeros and bytes.
        latency: One sentence on the target that the run was exported to; None if not timed.
    """

    name: str
    score: Score
    difference: Score | None
    size: Size
    latency: Latency | None


@dataclass(frozen=True)
class Size:
    """Zeros and bytes of a Program, as the analysis SparsityStats counts them.

    Attributes:
        layers: Share of zeros of each linear of the encoder, by name.
        encoder_zeros: Share of zeros in the encoder's linears.
        model_zeros: Share of zeros in the whole model.
        encoder_bytes: The encoder's linears as stored, index included.
        model_bytes: The whole model as stored, index included.
        stored_ratio: Dense float32 bytes of the model that the run was given over ``model_bytes``.
        paper_ratio: Those of its encoder's linears over the non-zero values alone.
    """

    layers: Mapping[str, float]
    encoder_zeros: float
    model_zeros: float
    encoder_bytes: int
    model_bytes: int
    stored_ratio: float
    paper_ratio: float

    @classmethod
    def of(cls, program: Program, given: Program | None = None) -> Size:
        """Count a Program; ``given`` is what the run started from, if layers or width are gone."""
        from sparsefx.passes.analyses.sparsity import SparsityStats

        found = program.facts(SparsityStats)
        first = (given or program).facts(SparsityStats)
        encoder, whole = found.encoder, found.whole
        linears = [t for t in found.tensors if t.role == "encoder" and len(t.shape) > 1]
        return cls(
            {linear.name: linear.share.sparsity for linear in linears},
            encoder.sparsity,
            whole.sparsity,
            encoder.stored_bytes,
            whole.stored_bytes,
            _over(first.whole.dense_bytes, whole.stored_bytes),
            _over(first.encoder.dense_bytes, encoder.value_bytes),
        )


def _over(given: int, now: int) -> float:
    return given / now if now else math.inf


def report_rows(
    result: RunResult, latencies: Mapping[str, Latency] | None = None
) -> tuple[ReportRow, ...]:
    """Return a row for each stage that was evaluated."""
    from sparsefx.train.metrics import paired_difference
    from sparsefx.train.results import CAPTURED

    rows: list[ReportRow] = []
    first, given = None, _given(result.folder / CAPTURED)
    for stage in result.stages:
        if stage.score is None:
            continue
        difference = None
        if stage.score.metric != "loss":
            logits, labels = stage.outputs()
            if first is not None:
                difference = paired_difference(
                    stage.score.metric, logits, first, labels, classes=result.classes
                )
            first = logits if first is None else first
        latency = (latencies or {}).get(stage.name)
        size = Size.of(stage.program(), given)
        rows.append(ReportRow(stage.name, stage.score, difference, size, latency))
    return tuple(rows)


def _given(folder: Path) -> Program | None:
    from sparsefx.program import Program

    return Program.load(folder) if is_program(folder) else None


def scored_on(row: ReportRow) -> str:
    """Return by which metric the rows are scored, and on how much.

    >>> from sparsefx.train.metrics import Score
    >>> size = Size({}, 0.0, 0.0, 0, 0, 1.0, 1.0)
    >>> score = Score("pearson_spearman", 0.8, 0.7, 0.9, 150, {})
    >>> scored_on(ReportRow("dense", score, None, size, None))
    'The score is pearson_spearman on 150 held-back examples.'
    """
    metric = row.score.metric
    told = "loss (less is better)" if metric == "loss" else metric
    return f"The score is {told} on {row.score.count:,} held-back examples."


def cells(row: ReportRow) -> tuple[str, ...]:
    """Return a row as text, one cell for each entry of HEAD."""
    from sparsefx.graph.printing import format_ratio

    size = row.size
    return (
        row.name,
        str(row.score),
        "" if row.difference is None else f"{100 * row.difference.value:+.1f}",
        f"{size.encoder_zeros:.1%}",
        f"{size.model_zeros:.1%}",
        _megabytes(size.model_bytes),
        format_ratio(size.stored_ratio),
        format_ratio(size.paper_ratio),
        "not timed" if row.latency is None else str(row.latency),
    )


def _megabytes(count: int) -> str:
    """Return bytes in MB, with two digits of what is less than one.

    >>> _megabytes(6_540_000), _megabytes(65_400), _megabytes(640)
    ('6.5', '0.065', '0.00064')
    """
    return f"{count / 1e6:.1f}" if count >= 1_000_000 else f"{count / 1e6:.2g}"


def run_page(
    result: RunResult, rows: Sequence[ReportRow], *, title: str, lead: str, timed_on: str = ""
) -> Page:
    """Return the page of a run: table, curves, sparsity per layer, sizes, how it was made."""
    from sparsefx.train.events import read_lines

    page = Page(title, lead)
    page.section(
        "Results",
        table(HEAD, [cells(row) for row in rows]),
        paragraph(f"{scored_on(rows[0])} {HOW_COUNTED}") if rows else "",
        paragraph(timed_on) if timed_on else "",
    )
    if rows and rows[0].score.metric != "loss":
        names = [row.name for row in rows]
        metric = "Accuracy" if rows[0].score.metric == "accuracy" else rows[0].score.metric
        page.section(metric, accuracy_plot(names, [_hundredfold(row.score) for row in rows]))
    lines = [line for _, line in read_lines(result.folder / "metrics.jsonl")]
    if lines:
        page.section("Training", _curves(result, lines))
    if rows:
        page.section("Zeros in each layer", _layers(rows[-1]))
        page.section("Size", _sizes(rows))
    page.section("How it was made", _stages(result))
    return page


def _hundredfold(score: Score) -> tuple[float, float, float]:
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return 100 * score.value, 100 * low, 100 * high


def _curves(result: RunResult, lines: Sequence[Mapping[str, Any]]) -> str:
    begin, marks = 0, {}
    loss: list[tuple[float, float]] = []
    zeros: list[tuple[float, float]] = []
    for stage in result.stages:
        steps = [line for line in lines if line["stage"] == stage.name and "loss" in line]
        if not steps:
            continue
        marks[stage.name] = float(begin)
        # No line goes from stage to stage: each minimises a loss of its own.
        loss += [
            (begin, math.nan),
            *_smooth([(begin + line["step"], line["loss"]) for line in steps]),
        ]
        shares = [(begin + line["step"], line["sparsity"]) for line in steps]
        zeros += [(x, 100 * y) for x, y in shares if y is not None]
        begin += stage.steps
    return curve_plot(
        {"loss (each stage minimises its own)": loss},
        left_label="loss",
        right={"zeros in masked weights": zeros} if zeros else None,
        right_label="percent",
        marks=marks,
    )


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return means over up to 20 steps, more beyond 4,000: ten points where there are ten steps.

    >>> len(_smooth([(step, 1.0) for step in range(12)])), len(_smooth([(0, 1.0)] * 9999))
    (12, 205)
    """
    width = max(1, min(20, len(points) // 10), len(points) // 200)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _layers(row: ReportRow) -> str:
    names = [short_name(name) for name in row.size.layers]
    shares = [100 * share for share in row.size.layers.values()]
    if not any(shares):
        return paragraph("No linear of the encoder has zeros.")
    return bar_plot(names, {"zeros": shares}, label="percent", limit=100)


def _sizes(rows: Sequence[ReportRow]) -> str:
    encoder = [row.size.encoder_bytes / 1e6 for row in rows]
    rest = [(row.size.model_bytes - row.size.encoder_bytes) / 1e6 for row in rows]
    return bar_plot(
        [row.name for row in rows],
        {"encoder linears": encoder, "embeddings and the rest": rest},
        label="MB stored, index included",
    )


def _stages(result: RunResult) -> str:
    body = []
    for stage in result.stages:
        seconds = sum(stage.seconds.values())
        body.append((stage.name, str(stage.steps), f"{seconds:.0f}"))
    recipe = result.folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return table(("stage", "steps", "seconds"), body) + f"<pre>{escaped}</pre>"
