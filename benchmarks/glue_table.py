"""Prints the table of all GLUE runs: one row for each recipe and stage, mean and spread over seeds.

    python benchmarks/glue_table.py

Scores are development scores in percent; MRPC shows the mean of accuracy and F1, and in brackets
the two. ``diff`` is the mean over tasks and seeds of the paired difference to the run's own dense
model.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results" / "glue"
Key = tuple[str, str, str]


def load(folder: Path) -> dict[Key, list[dict[str, Any]]]:
    """Return the stage results by model, recipe and stage, each with its task."""
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for stage, figures in run["stages"].items():
            key = (run["model"], run["recipe"]["name"], stage)
            found[key].append({"task": run["task"], "seed": run["seed"], **figures})
    return found


def cell(rows: list[dict[str, Any]]) -> str:
    """Return the mean over seeds, with the spread where there are several, and MRPC's parts."""
    if not rows:
        return ""
    values = [100 * row["score"]["value"] for row in rows]
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ±{statistics.stdev(values):.1f}"
    parts = rows[0]["score"]["parts"]
    if {"accuracy", "f1"} <= parts.keys():
        means = [
            statistics.mean(100 * row["score"]["parts"][name] for row in rows)
            for name in ("accuracy", "f1")
        ]
        text += f" ({means[0]:.1f}/{means[1]:.1f})"
    return text


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with the JSON files.")] = RESULTS,
) -> None:
    """Print the table."""
    found = load(folder)
    tasks = sorted({row["task"] for rows in found.values() for row in rows})
    table = Table("model", "recipe", "stage", "seeds", *tasks, "diff", "zeros", "paper", "stored")
    for (model, recipe, stage), rows in found.items():
        by_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
        gaps = [100 * row["difference"]["value"] for row in rows if row["difference"]]
        table.add_row(
            model,
            recipe,
            stage,
            str(len({row["seed"] for row in rows})),
            *[cell(by_task[task]) for task in tasks],
            f"{statistics.mean(gaps):+.1f}" if gaps else "",
            f"{rows[0]['encoder_zeros']:.0%}",
            f"{rows[0]['paper_ratio']:.1f}x",
            f"{rows[0]['stored_ratio']:.1f}x",
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
