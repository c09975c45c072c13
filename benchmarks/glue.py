"""Runs a recipe on GLUE tasks and writes one JSON for each task and seed.

    python benchmarks/glue.py sparsebert --tasks MRPC,RTE --seeds 0,1,2

A run that was interrupted goes on when the same command is given again; a finished one is not run
again. ``benchmarks/glue_table.py`` prints the table. Data: ``../shared/data/glue.tar.xz``, or a
folder with one folder a task (``--data``). Model: all-MiniLM-L6-v2 from PyPI, or ``--model``.
Stages that train on unlabelled texts get training texts of other tasks, without their labels, as
many as ``--transfer`` says. ``--budget-of sparsebert-small`` trains another recipe for as many
steps as that one, ``--sparsity 0.85`` prunes to that share: see ``benchmarks/variants.py``.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli import one_message
from sparsefx.cli.progress import SessionProgress
from sparsefx.errors import DataError
from sparsefx.huggingface import load_pretrained, load_tokenizer
from sparsefx.instruments.timing import machine
from sparsefx.problem import name_classes
from sparsefx.recipe import Recipe
from sparsefx.report.run import report_rows
from sparsefx.storage.files import write_json
from sparsefx.train.data.assets import cache_folder, minilm_folder
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.glue import load_glue
from sparsefx.train.data.tasks import Task
from sparsefx.train.differences import differences
from sparsefx.train.evaluation import SessionData
from sparsefx.train.events import read_lines
from sparsefx.train.randomness import seed_everything
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.variants import with_budget, with_sparsity  # noqa: E402  # its folder is on the path only now

ARCHIVE = HERE.parent.parent / "shared" / "data" / "glue.tar.xz"
TRANSFER = {
    "CoLA": ("SST-2",),
    "MNLI": ("QNLI", "RTE"),
    "MRPC": ("QQP", "STS-B"),
    "QNLI": ("MNLI", "RTE"),
    "QQP": ("MRPC", "STS-B"),
    "RTE": ("MNLI", "QNLI"),
    "SST-2": ("CoLA",),
    "STS-B": ("MRPC", "QQP"),
}
"""Task -> tasks of the same form whose training texts serve as unlabelled text."""


def glue_folder(given: Path | None) -> Path | None:
    """Return the folder with the tasks, unpacking the archive once; None where there is none."""
    if given is not None:
        return given
    folder = cache_folder() / "glue"
    if not folder.exists():
        if not ARCHIVE.exists():
            return None
        unpack(ARCHIVE, folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive to ``folder``, whole or not at all; another process may do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        unpacked = Path(work) / folder.name
        with tarfile.open(archive) as file:
            if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
                file.extraction_filter = tarfile.data_filter
            file.extractall(unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise


def transfer_texts(task: str, data: Path | None, count: int) -> Examples | None:
    """Return ``count`` texts drawn from other tasks' training splits; None for 0.

    The draw is the same for every seed, so that seeds differ in training alone.
    """
    if count == 0:
        return None
    found = [load_glue(name, data).split("train") for name in TRANSFER[task]]
    texts = [text for part in found for text in part.texts]
    pairs = [pair for part in found for pair in part.pairs or ()]
    chosen = random.Random(0).sample(range(len(texts)), min(count, len(texts)))
    return Examples("+".join(TRANSFER[task]), tuple(texts), tuple(pairs) or None).select(chosen)


def run_one(
    recipe: Recipe, task: Task, unlabelled: Examples | None, model: str, folder: Path
) -> RunResult:
    """Train and score one recipe on one task."""
    outputs = len(task.classes) if task.kind == "classification" else 1
    seed_everything(recipe.seed)
    network = load_pretrained(model, labels=outputs)
    name_classes(network.config, task.classes)
    with SessionProgress() as progress:
        return Session(
            recipe,
            network,
            SessionData(task, load_tokenizer(model), unlabelled),
            folder,
            listeners=[progress],
        ).run()


def curve(folder: Path) -> list[dict[str, object]]:
    """Return the scores of all evaluations of a run, in between too, and the loss up to each.

    The loss is the mean over the steps of the stage since its evaluation before.
    """
    found: list[dict[str, object]] = []
    losses: dict[str, list[float]] = defaultdict(list)
    for _, line in read_lines(folder / "metrics.jsonl"):
        if "loss" in line:
            losses[line["stage"]].append(line["loss"])
        if "value" in line:
            since = losses.pop(line["stage"], None)
            mean = sum(since) / len(since) if since else None
            found.append({**{k: line[k] for k in ("stage", "step", "value")}, "loss": mean})
    return found


def as_json(
    result: RunResult, recipe: Recipe, task: str, model: str, transfer: int
) -> dict[str, object]:
    """Return everything the table needs of one run."""
    stages = {
        row.name: {
            "score": row.score.as_json(),
            "difference": None if row.difference is None else row.difference.as_json(),
            **{key: value for key, value in vars(row.size).items() if key != "layers"},
        }
        for row in report_rows(result)
    }
    return {
        "recipe": recipe.settings(),
        "task": task,
        "seed": recipe.seed,
        "transfer": {"texts": transfer, "from": TRANSFER[task]} if transfer else None,
        "model": Path(model).name,
        "stages": stages,
        "curve": curve(result.folder),
        "seconds": {stage.name: dict(stage.seconds) for stage in result.stages},
        "machine": machine(),
    }


def finished(path: Path, transfer: int, recipe: Recipe | None = None) -> bool:
    """Return whether the run whose results are to go to ``path`` is there already.

    Raises:
        DataError: What is there had another number of unlabelled texts, or another recipe of this
            name, if one is given to compare it with: the name of the file tells neither.
    """
    if not path.exists():
        return False
    run = json.loads(path.read_text(encoding="utf-8"))
    had = (run.get("transfer") or {}).get("texts", 0)
    if had != transfer:
        raise DataError(
            f"that run had --transfer {had}, this one has --transfer {transfer}",
            who="glue",
            where=str(path),
            hint="give this one another --out and --work",
        )
    wanted = None if recipe is None else {**recipe.settings(), "seed": run["seed"]}
    if wanted and (changed := [*differences(run["recipe"], wanted, "recipe")]):
        raise DataError(
            "that run had another recipe of this name:\n  " + "\n  ".join(changed[:10]),
            who="glue",
            where=str(path),
            hint="name the recipe otherwise, or remove the file to run it again",
        )
    typer.echo(f"{path} is there already")
    return True


def _seeds(text: str) -> list[int]:
    """Return the seeds that a text lists.

    Raises:
        DataError: One is no whole number.
    """
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise DataError(
            f"{text!r} are no whole numbers", who="glue", where="--seeds", hint="such as 0,1,2"
        ) from error


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated.")] = "MRPC,RTE,CoLA,QNLI",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with one folder a task.")] = None,
    transfer: Annotated[
        int, typer.Option(min=0, help="Unlabelled texts from other tasks; see TRANSFER.")
    ] = 0,
    budget_of: Annotated[
        str | None, typer.Option(help="Recipe whose number of steps this one gets too.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of zeros in place of the recipe's.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Checkpoints; may be deleted.")] = Path("runs/glue"),
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = HERE / "results" / "glue",
) -> None:
    """Run a recipe on GLUE tasks."""
    place = model or str(minilm_folder())
    label = Path(place).name if model else "all-MiniLM-L6-v2"
    folder = glue_folder(data)
    base = Recipe.load(recipe)
    if sparsity is not None:
        base = with_sparsity(base, sparsity)
    budget = Recipe.load(budget_of) if budget_of else None
    method = f"{base.name}-at-{budget.name}" if budget else base.name
    runs = [
        (seed, task, f"{method}-{label}-{task}-{seed}")
        for seed, task in itertools.product(_seeds(seeds), tasks.split(","))
    ]
    known = None if budget else base  # what a budget makes of it hangs on the data
    left = [run for run in runs if not finished(out / f"{run[-1]}.json", transfer, known)]
    wanted = dict.fromkeys(task for _, task, _ in left)
    loaded = {task: load_glue(task, folder) for task in wanted}  # a typo costs no finished run
    unlabelled = {task: transfer_texts(task, folder, transfer) for task in wanted}
    for seed, task, name in left:
        examples, texts = loaded[task], unlabelled[task]
        used = base.model_copy(update={"seed": seed})
        if budget is not None:
            used = with_budget(used, budget, len(examples.split("train")), len(texts or ()))
        result = run_one(used, examples, texts, place, work / name)
        path = out / f"{name}.json"
        write_json(path, as_json(result, used, task, label, transfer))
        typer.echo(f"wrote {path}")


if __name__ == "__main__":
    with one_message():
        typer.run(main)
