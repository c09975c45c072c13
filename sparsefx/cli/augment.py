"""``sparsefx augment``: a data file again, with variants of its texts as TinyBERT makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.console import stdout
from sparsefx.cli.data_options import FILE_HELP, Text, text_columns
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.cli.programs import open_program
from sparsefx.cli.saved import tokenizer_of
from sparsefx.errors import DataError
from sparsefx.storage.files import whole_file

if TYPE_CHECKING:
    from sparsefx.train.data.augment import Augmenter
    from sparsefx.train.data.examples import Examples

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Argument(help="Run folder, saved Program, or Hugging Face model.")],
    data: Annotated[Path, typer.Option(help=FILE_HELP)],
    out: Annotated[Path, typer.Option(help="The jsonl file to write.")],
    text: Text = None,
    copies: Annotated[int, typer.Option(help="Copies of each text to try.")] = 20,
    probability: Annotated[float, typer.Option(help="Share of words to replace.")] = 0.4,
    candidates: Annotated[int, typer.Option(help="Words to choose from.")] = 15,
    seed: Annotated[int, typer.Option(help="Of the choices.")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or id of the tokenizer.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Masked words in a batch.")] = 32,
    overwrite: Overwrite = False,
) -> None:
    """Make more training texts: every row again, with some words replaced by others that fit.

    Every row is written, then its variants; other columns, such as the label, stay.

    A model with a head for masked tokens predicts what fits in a word's place.

    Of any other model the nearest words of its embedding table are taken.
    """
    from sparsefx.cli.progress import counting
    from sparsefx.huggingface import load_tokenizer
    from sparsefx.train.data.augment import Augmentation, Augmenter
    from sparsefx.train.data.columns import find_text
    from sparsefx.train.data.tables import read_table
    from sparsefx.train.data.tasks import load_texts

    if out.suffix != ".jsonl":
        raise DataError("expected a file that ends in .jsonl", who="augment", where=str(out))
    check_new({"--out": out}, who="augment", overwrite=overwrite)
    settings = Augmentation(copies, probability, candidates, seed)
    table = read_table(data)
    names = text_columns(text) or find_text(table.columns, table.origin)
    examples = load_texts(table, names)
    augmenter = Augmenter(
        load_tokenizer(tokenizer or tokenizer_of(model)),
        open_program(model),
        settings,
        max_length=max_length,
        batch_size=batch_size,
    )
    columns = (names,) if isinstance(names, str) else names
    written = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        counting("augment", "augmenting", "texts") as tell,
        whole_file(out) as beside,
        beside.open("w", encoding="utf-8") as file,
    ):
        for row in range(len(examples)):
            cells = {name: values[row] for name, values in table.columns.items()}
            lines = [_line(cells, columns, some) for some in _forms(augmenter, examples, row)]
            file.writelines(lines)
            written += len(lines)
            tell(row + 1, len(examples))
    source = "a head for masked tokens" if augmenter.predicts else "the embedding table"
    stdout.print(f"{len(examples):,} rows became {written:,} by {source}; wrote {out}")


def _forms(augmenter: Augmenter, examples: Examples, row: int) -> Iterator[tuple[str, str | None]]:
    """Yield the text, or pair of texts, of a row, then its variants."""
    given = examples.texts[row], None if examples.pairs is None else examples.pairs[row]
    yield given
    yield from augmenter.variants(*given)


def _line(cells: Mapping[str, object], columns: Sequence[str], texts: Sequence[str | None]) -> str:
    new = dict(cells)
    for name, text in zip(columns, texts, strict=False):  # of a single text the second is None
        words = text is not None and isinstance(cells[name], list)
        new[name] = str(text).split(" ") if words else text  # labels of words stand beside words
    return json.dumps(new, ensure_ascii=False) + "\n"
