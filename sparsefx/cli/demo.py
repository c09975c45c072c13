"""``sparsefx demo``: the whole way on a real BERT and real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli.console import stderr

__all__ = ["command"]

QUICK_TEST = 500  # sentences that the short form is scored on; the longer ones take 1,500
QUICK_TRANSFER = 5_000  # unlabelled sentences; the longer forms take 20,000


def command(
    quick: Annotated[bool, typer.Option("--quick", help="The short form, two minutes.")] = False,
    full: Annotated[bool, typer.Option("--full", help="No time limit, best accuracy.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where everything is kept; run again to go on.")
    ] = None,
) -> None:
    """Make all-MiniLM-L6-v2 90 % sparse and int8 on review sentences, and report."""
    from sparsefx.cli.runs import train_and_report
    from sparsefx.huggingface import load_pretrained, load_tokenizer
    from sparsefx.problem import name_classes
    from sparsefx.recipe import Recipe
    from sparsefx.train.data.assets import demo_data, minilm_folder
    from sparsefx.train.evaluation import SessionData
    from sparsefx.train.randomness import seed_everything

    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    name = "demo-quick" if quick else "demo-full" if full else "demo"
    recipe = Recipe.load(name)
    place = minilm_folder()
    stderr.print("reading the sentences")
    data = demo_data(test=QUICK_TEST, transfer=QUICK_TRANSFER) if quick else demo_data()
    seed_everything(recipe.seed)
    model = load_pretrained(str(place), labels=len(data.task.classes))
    name_classes(model.config, data.task.classes)
    train_and_report(
        recipe,
        model,
        SessionData(data.task, load_tokenizer(str(place)), data.transfer),
        folder or Path("runs") / name,
        title="all-MiniLM-L6-v2: dense, 90 % sparse, sparse int8",
        timed="last" if quick else "all" if full else "ends",
    )
