"""``sparsefx sensitivity``: which layers can be pruned far, and which had better stay float."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsefx.cli.classes import Head, given_classes, labels_for
from sparsefx.cli.console import filled, say, stderr, stdout
from sparsefx.cli.data_options import FILE_HELP, Label, Text, label_columns, text_columns
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.cli.programs import open_program
from sparsefx.cli.saved import made_by, tokenizer_of
from sparsefx.errors import DataError
from sparsefx.problem import Kind, named_classes
from sparsefx.storage.files import write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefx.cli.unfinished import Unfinished
    from sparsefx.passes.prune.loss_curves import LossCurve
    from sparsefx.passes.prune.sensitivity import Sensitivity
    from sparsefx.program import Program
    from sparsefx.train.data.examples import Examples
    from sparsefx.train.data.tasks import Task

__all__ = ["command"]

_LEVELS = "0.5,0.7,0.8,0.9,0.95"
_CURVES, _INT8, _PAGE = "curves.json", "int8.json", "sensitivity.html"
_UNFINISHED = "unfinished.json"
_WORST = 3  # weights that are named where the loss rises most


def command(
    model: Annotated[str, typer.Argument(help="Run folder, saved Program, or Hugging Face model.")],
    data: Annotated[str, typer.Option(help=FILE_HELP)],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("sensitivity"),
    text: Text = None,
    label: Label = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in the head's order, with commas.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(help=f"Sparsities, with commas. Default: {_LEVELS}; of N:M its own."),
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="unstructured, a block such as 1x4, or N:M.")
    ] = "unstructured",
    roles: Annotated[
        str, typer.Option(help="Of encoder, pooler, head and other, with commas.")
    ] = "encoder",
    examples: Annotated[int, typer.Option(min=1, help="Examples to measure on.")] = 256,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or id of the tokenizer.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
    overwrite: Overwrite = False,
) -> None:
    """Prune and quantize each linear alone, and show what the loss does.

    The pass allocate-sparsity{sensitivity='...'} reads the file curves.json that this leaves.

    A stopped command goes on where it was.
    """
    from sparsefx.cli.unfinished import Unfinished
    from sparsefx.huggingface import load_tokenizer
    from sparsefx.train.data.batches import check_tokens, encode, evaluation_batches

    for name in (_CURVES, _INT8, _PAGE):
        check_new({"--out": out / name}, who="sensitivity", overwrite=overwrite)
    wanted, chosen = _levels(levels, pattern), [each.strip() for each in roles.split(",")]
    program = open_program(model).eval()
    head = _head(program, model, classes)
    task = _task(data, text, label, head)
    held = task.split("test")
    some = held.select(range(min(examples, len(held))))
    coded = encode(load_tokenizer(tokenizer or tokenizer_of(model)), some, max_length)
    check_tokens(coded, program.config)
    task.check_head(head.outputs or 0)
    batches = [batch for _, batch in evaluation_batches(coded, batch_size)]
    asked = {
        "levels": list(wanted),
        "pattern": pattern,
        "roles": chosen,
        "max_length": max_length,
        "batch_size": batch_size,
        **_given(program, task, some, batches),
    }
    kept = Unfinished(out / _UNFINISHED, asked, who="sensitivity", overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    found = _measured(program, batches, task.kind, chosen, wanted, pattern, kept)
    curves, page = _write(found, wanted, f"{len(some)} examples of {data}", out)
    kept.finish()
    stdout.print(filled(*_rows(found, wanted)))
    say(_worst(found, wanted[-1]))
    stdout.print(f"loss of the untouched model {found.base:.4f}; wrote {curves}, {page}")


def _head(program: Program, model: str, classes: str | None) -> Head:
    """Return what is known of the head, with the classes that the user names, if any.

    Raises:
        DataError: The number of its outputs is not known, or not that of the names.
    """
    from sparsefx.train.evaluation import head_outputs, predicts_tokens

    outputs, made = head_outputs(program), made_by(model)
    if outputs is None:
        raise DataError(
            "how many values it predicts for a text is not known",
            who="sensitivity",
            where=model,
            hint="give a model with a classification or regression head",
        )
    names = (made.classes if made else None) or named_classes(program.config)
    if classes is not None:
        names = given_classes(classes, outputs, names, who="sensitivity")
    return Head(model, outputs, predicts_tokens(program), program.config, made, names)


def _task(data: str, text: str | None, label: str | None, head: Head) -> Task:
    """Return the data as a task with the classes of the head."""
    from sparsefx.train.data.tables import read_table
    from sparsefx.train.data.tasks import load_task

    table = read_table(data)
    labels = labels_for(table, label_columns(label), head, "sensitivity")
    return load_task(
        {"test": table},
        text=text_columns(text),
        label=labels.column,
        kind=labels.kind,
        classes=labels.classes,
    )


def _measured(
    program: Program,
    batches: Sequence[Mapping[str, Tensor]],
    kind: Kind,
    roles: Sequence[str],
    levels: tuple[float, ...],
    pattern: str,
    kept: Unfinished,
) -> Sensitivity:
    """Return what the loss against the labels does, and show how far the measurement is.

    Raises:
        TrainingInterruptedError: SIGINT or SIGTERM came; what was measured is kept.
    """
    from sparsefx.cli.progress import counting
    from sparsefx.passes.prune.sensitivity import measure_sensitivity
    from sparsefx.train.evaluation import inputs_for, logits_name
    from sparsefx.train.step.optimization import label_loss
    from sparsefx.train.stop import StopRequest, interrupted

    output = logits_name(program)

    def loss(outputs: Mapping[str, Tensor], number: int) -> Tensor:
        labels = batches[number]["labels"]
        labels = labels.long() if kind == "classification" else labels
        return label_loss(kind, outputs[output], labels)

    def tell(done: int, total: int, left: float | None) -> None:
        if left is None:
            _say_begin(done, total, levels, batches)
        if kept.keep() and stop.asked and done < total:
            raise interrupted(f"stopped; {done} of {total} losses are kept", "sensitivity")
        show(done, total, left)

    inputs = [inputs_for(program, batch) for batch in batches]
    with counting("sensitivity", "measuring", "losses") as show, StopRequest() as stop:
        return measure_sensitivity(
            program,
            inputs,
            loss,
            levels=levels,
            pattern=pattern,
            roles=roles,
            losses=kept.numbers,
            tell=tell,
        )


def _say_begin(
    done: int, total: int, levels: Sequence[float], batches: Sequence[Mapping[str, Tensor]]
) -> None:
    linears, zeros = (total - 1) // (len(levels) + 1), ", ".join(f"{each:.0%}" for each in levels)
    text = (
        f"sensitivity: {total} losses, each over {len(batches)} batches: {linears} linears, each "
        f"with {zeros} zeros and in int8, and the untouched model"
    )
    if done:
        text += f"; {done} are kept from before"
    stderr.print(text)


def _given(
    program: Program, task: Task, examples: Examples, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Return what tells model and data from others; tokens as they are put into batches."""
    from sparsefx.graph.digest import tensor_digest

    tokens = [f"{name}:{tensor_digest(each)}" for batch in batches for name, each in batch.items()]
    return {
        "model": program.fingerprint()[:16],
        "examples": examples.digest(),
        "kind": task.kind,
        "classes": list(task.classes),
        "tokens": hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16],
    }


def _levels(levels: str | None, pattern: str) -> tuple[float, ...]:
    """Return the sparsities asked for; of N:M, which has one sparsity, that one by itself."""
    if levels is not None:
        return _numbers(levels)
    kept, colon, group = pattern.partition(":")
    if colon and kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group):
        return (1 - int(kept) / int(group),)
    return _numbers(_LEVELS)


def _numbers(levels: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(each) for each in levels.split(",") if each.strip()}))
    except ValueError as error:
        raise DataError(
            f"{levels!r} are not numbers", who="sensitivity", where="--levels"
        ) from error
    if not found or not all(0 < level < 1 for level in found):
        raise DataError(
            f"{levels!r}: expected sparsities between 0 and 1", who="sensitivity", where="--levels"
        )
    return found


def _write(found: Sensitivity, levels: tuple[float, ...], on: str, out: Path) -> tuple[Path, Path]:
    """Write all that was measured; return where the curves are, and the page."""
    from sparsefx.passes.prune.loss_curves import write_loss_curves

    curves, page = write_loss_curves(found.curves, out / _CURVES), out / _PAGE
    write_json(out / _INT8, found.int8)
    write_text(page, _page(found, levels, on).render())
    return curves, page


def _rows(found: Sensitivity, levels: tuple[float, ...]) -> tuple[list[str], list[list[str]]]:
    head = ["weight", *(f"{level:.0%}" for level in levels), "int8"]
    rows = [
        [name, *(f"{_measured_at(curve, level):+.4f}" for level in levels), f"{int8:+.4f}"]
        for (name, curve), int8 in zip(found.curves.items(), found.int8.values(), strict=True)
    ]
    return head, rows


def _worst(found: Sensitivity, level: float) -> str:
    """Say where the loss rises most, as the table is long."""
    losses = {name: _measured_at(curve, level) for name, curve in found.curves.items()}
    worst = sorted(losses, key=lambda name: -losses[name])[:_WORST]
    told = ", ".join(f"{name} {losses[name]:+.4f}" for name in worst)
    return f"with {level:.0%} zeros the loss rises most at {told}"


def _measured_at(curve: LossCurve, level: float) -> float:
    """Return what was measured there: ``curve.at`` never falls, and a loss may."""
    return dict(curve.points)[level]


def _page(found: Sensitivity, levels: tuple[float, ...], on: str) -> Any:
    from sparsefx.report.page import Page, paragraph, table
    from sparsefx.report.plots import bar_plot, short_name

    page = Page("Sensitivity", f"Increase of the loss when one linear alone is changed; {on}.")
    names = [short_name(name) for name in found.curves]
    high = {f"{level:.0%} zeros": [_measured_at(curve, level) for curve in found.curves.values()]
            for level in levels[-2:]}  # fmt: skip
    page.section("Pruned", bar_plot(names, high, label="loss increase"))
    page.section(
        "int8", bar_plot(names, {"int8": list(found.int8.values())}, label="loss increase")
    )
    page.section(
        "All figures",
        paragraph(
            f"The untouched model has a loss of {found.base:.4f}; {_worst(found, levels[-1])}."
        ),
        table(*_rows(found, levels)),
    )
    return page
