"""Prints the table of all GLUE runs as Markdown: one row for each model, recipe and stage.

    python benchmarks/glue_table.py
    python benchmarks/glue_table.py --dense fine-tune

Scores are development scores in percent: the mean over seeds, and with several seeds half of its
95 % interval (Student's t). MRPC is the mean of accuracy and F1, and in brackets the two.
``average`` is over QNLI, MRPC, RTE and CoLA, where a row has all four. ``to dense`` is the
difference to the dense model of the same model, task and seed, averaged over tasks, then over seeds
with its interval: to the run's own dense stage, else to that of the recipe ``fine-tune``;
``--dense`` names one recipe for all rows. ``zeros`` and ``paper`` count the encoder's linears,
``stored`` the whole model with its indices. Runs of one recipe with other settings have rows of
their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsefx.cli import one_message
from sparsefx.errors import DataError

RESULTS = Path(__file__).resolve().parent / "results" / "glue"
TASKS = ("QNLI", "MRPC", "RTE", "CoLA")
MORE = ("SST-2", "STS-B", "MNLI", "QQP")
DENSE = ("dense", "teacher", "predecessor")
"""Stages that fine-tune the model as it is."""
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t with 1, 2, ... degrees of freedom."""
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """What a row of the table is of."""

    model: str
    recipe: str
    stage: str
    settings: str


@dataclass(frozen=True)
class Entry:
    """A stage of one run."""

    task: str
    seed: int
    figures: Figures

    @property
    def percent(self) -> float:
        """The score."""
        return 100 * float(self.figures["score"]["value"])


def load(folder: Path) -> dict[Key, list[Entry]]:
    """Return the scored stages of all runs.

    Raises:
        DataError: There are none.
    """
    found: dict[Key, list[Entry]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for stage, figures in run["stages"].items():
            key = Key(run["model"], run["recipe"]["name"], stage, _settings(run))
            found[key].append(Entry(run["task"], run["seed"], figures))
    if not found:
        raise DataError(
            "there are no results of glue.py here"
            if folder.is_dir()
            else "there is no such folder",
            who="table",
            where=str(folder),
            hint="benchmarks/glue.py writes one JSON file for each run, into --out",
        )
    return dict(found)


def _settings(run: Figures) -> str:
    """Return a digest of what two runs must share to be seeds of one."""
    recipe = {key: value for key, value in run["recipe"].items() if key != "seed"}
    transfer = (run.get("transfer") or {}).get("texts", 0)
    return hashlib.sha256(json.dumps([recipe, transfer]).encode()).hexdigest()[:6]


def interval(values: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of a mean; None for less than two values.

    >>> round(interval([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return None
    quantile = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float], *, sign: bool = False) -> str:
    """Return mean and interval as text; nothing for no values."""
    if not values:
        return ""
    half = interval(values)
    mean = f"{statistics.mean(values):{'+' if sign else ''}.1f}"
    return mean if half is None else f"{mean} ±{half:.1f}"


def cell(entries: Sequence[Entry]) -> str:
    """Return the score of one task, with accuracy and F1 where it has both."""
    text = shown([entry.percent for entry in entries])
    parts = [entry.figures["score"]["parts"] for entry in entries]
    if parts and {"accuracy", "f1"} <= parts[0].keys():
        both = (statistics.mean(100 * part[name] for part in parts) for name in ("accuracy", "f1"))
        text += " ({:.1f}/{:.1f})".format(*both)
    return text


def by_seed(values: Mapping[tuple[str, int], float], tasks: Iterable[str]) -> list[float]:
    """Return the mean over ``tasks`` for each seed that has all of them."""
    wanted = list(tasks)
    seeds = sorted({seed for _, seed in values})
    return [
        statistics.mean(values[task, seed] for task in wanted)
        for seed in seeds
        if all((task, seed) in values for task in wanted)
    ]


def dense_scores(
    found: Mapping[Key, Sequence[Entry]], key: Key, dense: str | None
) -> dict[tuple[str, int], float]:
    """Return what a row is compared with, by task and seed: see the head of this file."""
    own: dict[tuple[str, int], float] = {}
    other: dict[tuple[str, int], float] = {}
    for each, entries in found.items():
        if each.model != key.model or each.stage not in DENSE:
            continue
        scores = {(entry.task, entry.seed): entry.percent for entry in entries}
        if (each.recipe, each.settings) == (key.recipe, key.settings):
            own.update(scores)
        if each.recipe == (dense or "fine-tune"):
            other.update(scores)
    return other if dense else {**other, **own}


def row(
    found: Mapping[Key, Sequence[Entry]], key: Key, dense: str | None, tasks: Sequence[str]
) -> list[str]:
    """Return the cells of a row."""
    entries = found[key]
    scores = {(entry.task, entry.seed): entry.percent for entry in entries}
    theirs = dense_scores(found, key, dense)
    gaps = {at: value - theirs[at] for at, value in scores.items() if at in theirs}
    compared = [] if key.stage in DENSE and not dense else by_seed(gaps, {task for task, _ in gaps})
    alike = [k for k in found if (k.model, k.recipe, k.stage) == (key.model, key.recipe, key.stage)]
    means = {
        name: statistics.mean(entry.figures[name] for entry in entries)
        for name in ("encoder_zeros", "paper_ratio", "stored_ratio")
    }
    return [
        key.model,
        f"{key.recipe} [{key.settings}]" if len(alike) > 1 else key.recipe,
        key.stage,
        str(len({entry.seed for entry in entries})),
        *[cell([entry for entry in entries if entry.task == task]) for task in tasks],
        shown(by_seed(scores, TASKS)),
        shown(compared, sign=True),
        f"{means['encoder_zeros']:.0%}",
        f"{means['paper_ratio']:.1f}x",
        f"{means['stored_ratio']:.1f}x",
    ]


def table(found: Mapping[Key, Sequence[Entry]], dense: str | None = None) -> str:
    """Return the table as Markdown."""
    known = {entry.task for entries in found.values() for entry in entries}
    tasks = [*TASKS, *(task for task in MORE if task in known)]
    head = ["model", "recipe", "stage", "seeds", *tasks, "average", "to dense", "zeros"]
    head += ["paper", "stored"]
    lines = [head, ["---"] * len(head)]
    lines += [row(found, key, dense, tasks) for key in found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with the JSON files.")] = RESULTS,
    dense: Annotated[
        str | None, typer.Option(help="Recipe whose dense stage all rows are compared with.")
    ] = None,
) -> None:
    """Print the table."""
    typer.echo(table(load(folder), dense))


if __name__ == "__main__":
    with one_message():
        typer.run(main)
