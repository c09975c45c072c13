"""``sparsefx bench``: time a Program on several targets, in turns, in one run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.console import filled, stderr, stdout
from sparsefx.cli.outputs import Overwrite, check_new
from sparsefx.cli.programs import open_program
from sparsefx.errors import DataError, SparsefxError
from sparsefx.storage.files import write_json

if TYPE_CHECKING:
    from sparsefx.instruments.timing import Latency

__all__ = ["command", "parse_shape"]


def command(
    program: Annotated[str, typer.Argument(help="Folder of a saved Program, or a model.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="A target; may be given again. Default: reference, and onnxruntime.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="BATCHxTOKENS; may be given again. Default: 1x128."),
    ] = None,
    runs: Annotated[int, typer.Option(min=3, help="Timed runs of each.")] = 15,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="torch threads; 0 keeps the default.")
    ] = 0,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="Write the milliseconds to this file too.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Time targets side by side: interleaved, median and spread, on random tokens."""
    import torch

    from sparsefx import registry
    from sparsefx.inputs.lengths import check_length
    from sparsefx.instruments.timing import machine, random_batch, time_in_turns

    if threads:
        torch.set_num_threads(threads)
    targets = {text: registry.parse_target(text) for text in target or ["reference", "onnxruntime"]}
    check_new({"--json": to_json}, who="bench", overwrite=overwrite)
    sizes = {text: parse_shape(text, who="bench") for text in shape or ["1x128"]}
    model = open_program(program).eval()
    for batch, tokens in sizes.values():
        check_length(model.config, tokens, "tokens in --shape")
        model.signature.check_taken(batch, tokens)
    compiled: dict[str, Callable[..., object]] = {}
    for text, known in targets.items():
        try:
            compiled[text] = ready = known.compile(model)
        except SparsefxError as error:
            stderr.print(f"left out {text}: {error}")
            continue
        for reason in getattr(ready, "outside", ()):
            stderr.print(f"{text}: {reason}")
    if not compiled:
        raise DataError("no target is left to time", who="bench")
    figures: dict[str, dict[str, Latency]] = {}
    for text, size in sizes.items():
        figures[text] = time_in_turns(compiled, random_batch(model, *size), runs=runs)
    head = ("shape", "target", "median ms", "min", "max", "against first")
    stdout.print(filled(head, _rows(figures)))
    stdout.print(f"{machine()}, {runs} runs in turns")
    if to_json is not None:
        shapes = {at: {name: asdict(ms) for name, ms in row.items()} for at, row in figures.items()}
        write_json(to_json, {"machine": machine(), "unit": "ms", "shapes": shapes})


def _rows(figures: Mapping[str, Mapping[str, Latency]]) -> Iterator[tuple[str, ...]]:
    """Yield the times by shape and target."""
    for shape, timed in figures.items():
        first = next(iter(timed.values())).median
        for name, found in timed.items():
            spread = (f"{found.median:.2f}", f"{found.low:.2f}", f"{found.high:.2f}")
            yield shape, name, *spread, f"{first / found.median:.2f}x"


def parse_shape(text: str, *, who: str) -> tuple[int, int]:
    """Return (batch, tokens) of a text such as ``1x128``."""
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text, re.ASCII)
    if found is None:
        hint = "two whole numbers above 0, e.g. 1x128"
        raise DataError(f"{text!r} is not BATCHxTOKENS", who=who, where="--shape", hint=hint)
    return int(found[1]), int(found[2])
