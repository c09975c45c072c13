"""Writes pairs of texts without labels, from which `sparse-pretrain-small` makes a sparse model.

    python benchmarks/pretraining_pairs.py pairs.csv
    sparsefx compress sparse-pretrain-small --model path/to/all-MiniLM-L6-v2 --unlabelled pairs.csv

The pairs of the training splits of MNLI, QQP and STS-B without their labels, and 36,000 pairs of
sentences of Wikipedia that follow each other, all from ``../shared/data``. No text of MRPC, RTE,
CoLA or QNLI is among them, so that transfer to these four is transfer to something new.
"""

from __future__ import annotations

import csv
import lzma
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sparsefx.cli import one_message
from sparsefx.train.data.glue import load_glue

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.glue import glue_folder  # noqa: E402  # its folder is on the path only now

WIKIPEDIA = HERE.parent.parent / "shared" / "data" / "enwiki2014_40MB.txt.xz"
TASKS = ("MNLI", "QQP", "STS-B")
WORDS = range(4, 29)
"""Words of a sentence of Wikipedia: no headlines, and few pairs that are cut at 128 tokens."""


def task_pairs(folder: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the training pairs of ``TASKS``."""
    for name in TASKS:
        train = load_glue(name, folder).split("train")
        yield from zip(train.texts, train.pairs or (), strict=True)


def wikipedia_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of sentences that follow each other in a paragraph."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            every = re.split(r"(?<=[.!?])\s+", line.strip())
            sentences = [one for one in every if len(one.split()) in WORDS]
            yield from zip(sentences[::2], sentences[1::2], strict=False)


def main(
    out: Annotated[Path, typer.Argument(help="A csv file.")],
    glue: Annotated[Path | None, typer.Option(help="Folder with one folder a task.")] = None,
    wikipedia: Annotated[
        Path, typer.Option(help="Text, one paragraph a line, as .xz.")
    ] = WIKIPEDIA,
    count: Annotated[int, typer.Option(min=1, help="Pairs of Wikipedia.")] = 36_000,
    seed: Annotated[int, typer.Option(help="Of the draw and the order.")] = 0,
) -> None:
    """Write the pairs."""
    draw = random.Random(seed)
    drawn = list(wikipedia_pairs(wikipedia))
    draw.shuffle(drawn)
    rows = [*task_pairs(glue_folder(glue)), *drawn[:count]]
    draw.shuffle(rows)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2"])
        cleaned = ([text.replace("\t", " ").strip() for text in row] for row in rows)
        writer.writerows(row for row in cleaned if all(row))
    typer.echo(f"{len(rows):,} pairs in {out}")


if __name__ == "__main__":
    with one_message():
        typer.run(main)
