"""Compares what targets say of a GLUE development split with what the reference says.

    python benchmarks/target_agreement.py RUN --task MRPC --target cpu --target onnxruntime

Prints, for each target, the score, how many examples get the reference's class, and the largest
difference of a logit. Batches are padded to their longest text. ``--data`` as in ``glue.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sparsefx.cli import one_message
from sparsefx.cli.saved import made_by, open_saved, tokenizer_of
from sparsefx.huggingface import load_tokenizer
from sparsefx.instruments.timing import machine
from sparsefx.storage.files import write_json
from sparsefx.train.data.batches import encode
from sparsefx.train.data.glue import load_glue
from sparsefx.train.metrics import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.glue import glue_folder  # its folder is on the path only now


def main(
    model: Annotated[str, typer.Argument(help="Run folder or Program with a head for classes.")],
    task: Annotated[str, typer.Option(help="A GLUE task with classes.")],
    target: Annotated[list[str], typer.Option(help="May be given several times.")],
    data: Annotated[Path | None, typer.Option(help="Folder with one folder a task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures too.")] = None,
) -> None:
    """Compare targets with the reference on a GLUE development split."""
    split = load_glue(task, glue_folder(data)).split("test")
    made = made_by(model)
    length = made.max_length if made else 128
    examples = encode(load_tokenizer(tokenizer_of(model)), split, length)
    labels = examples.scored_labels()
    assert labels is not None
    names = dict.fromkeys(("reference", *target))
    predicted = {
        name: open_saved(model, name).predict(examples, batch_size, None) for name in names
    }
    wanted = predicted["reference"]
    rows: list[dict[str, object]] = []
    for name, found in predicted.items():
        row: dict[str, object] = {
            "target": name,
            "accuracy": evaluate("accuracy", found.astype(np.float64), labels).value,
            "same_class": float((found.argmax(1) == wanted.argmax(1)).mean()),
            "largest_difference": float(np.abs(found - wanted).max()),
        }
        print(json.dumps(row))
        rows.append(row)
    if to_json is not None:
        report = {"task": task, "examples": len(labels), "machine": machine(), "targets": rows}
        write_json(to_json, report)


if __name__ == "__main__":
    with one_message(goes_on=False):
        typer.run(main)
