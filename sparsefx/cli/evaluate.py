"""``sparsefx evaluate``: score a saved model on a labelled file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.compress import text_columns
from sparsefx.cli.console import stdout
from sparsefx.cli.programs import open_program
from sparsefx.errors import DataError

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["class_names", "command", "tokenizer_of"]


def command(
    model: Annotated[str, typer.Argument(help="Run folder, saved Program, or Hugging Face model.")],
    data: Annotated[str, typer.Option(help="A csv, tsv, jsonl or parquet file.")],
    text: Annotated[str, typer.Option(help="Text column, or two: first,second.")] = "text",
    label: Annotated[str, typer.Option(help="Label column.")] = "label",
    metric: Annotated[str | None, typer.Option(help="Default: accuracy, or correlations.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or id of the tokenizer.")] = None,
    target: Annotated[str, typer.Option(help="Where the model runs.")] = "reference",
    max_length: Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
) -> None:
    """Print the score of a model on labelled data, with its 95 % interval."""
    from sparsefx import registry
    from sparsefx.huggingface import load_tokenizer
    from sparsefx.train.batches import check_tokens, encode
    from sparsefx.train.evaluation import predict
    from sparsefx.train.metrics import evaluate
    from sparsefx.train.tasks import load_task

    program = open_program(model).eval()
    classes = class_names(program)
    task = load_task({"test": data}, text=text_columns(text), label=label, classes=classes)
    examples = encode(
        load_tokenizer(tokenizer or tokenizer_of(model)),
        task.split("test"),
        max_length,
    )
    if examples.labels is None:
        raise DataError("the data have no labels", who="evaluate", where=data)
    check_tokens(examples, program.config)
    compiled = None if target == "reference" else registry.parse_target(target).compile(program)
    logits = predict(program, examples, batch_size, compiled)
    chosen = task.metric if metric is None else metric
    score = evaluate(chosen, logits, examples.labels.numpy())  # type: ignore[arg-type]  # evaluate names unknown ones
    stdout.print(f"{score.metric} {score} on {score.count} examples, {target}", markup=False)
    for name, value in score.parts.items():
        if len(score.parts) > 1:  # else it is the score itself
            stdout.print(f"  {name} {100 * value:.2f}")


def class_names(program: Program) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the head, if the model knows them."""
    names = program.config.get("id2label") or {}
    found = tuple(str(names[key]) for key in sorted(names, key=int))
    return None if not found or all(name.startswith("LABEL_") for name in found) else found


def tokenizer_of(model: str) -> str:
    """Return where the tokenizer of a model is: in its folder, or under its id."""
    for place in (Path(model) / "huggingface", Path(model)):
        if (place / "tokenizer.json").exists() or (place / "vocab.txt").exists():
            return str(place)
    if Path(model).exists():
        raise DataError("there is no tokenizer here", where=model, hint="give --tokenizer")
    return model
