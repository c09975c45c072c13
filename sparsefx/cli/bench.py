"""``sparsefx bench``: time a Program on several targets, in turns, in one run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sparsefx.cli.console import stderr, stdout
from sparsefx.cli.programs import open_program
from sparsefx.errors import DataError, SparsefxError

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefx.program import Program

__all__ = ["command"]


def command(
    program: Annotated[str, typer.Argument(help="Folder of a saved Program, or a model.")],
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="A target; give several to compare.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="BATCHxTOKENS; may be given again.")
    ] = None,
    runs: Annotated[int, typer.Option(min=3, help="Timed runs of each.")] = 15,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 keeps the default.")] = 0,
) -> None:
    """Time targets side by side: interleaved, median and spread, on random tokens."""
    import torch

    from sparsefx import registry

    if threads:
        torch.set_num_threads(threads)
    model = open_program(program).eval()
    compiled: dict[str, Callable[..., object]] = {}
    for text in target or ["reference", "onnxruntime"]:
        try:
            compiled[text] = registry.parse_target(text).compile(model)
        except SparsefxError as error:
            stderr.print(f"left out {text}: {error}", markup=False)
    if not compiled:
        raise DataError("no target is left to time", who="bench")
    table = Table("shape", "target", "median ms", "min", "max", "against first", box=None)
    for text in shape or ["1x128"]:
        batch = random_batch(model, *_parse_shape(text))
        figures = time_in_turns(compiled, batch, runs)
        first = _median(next(iter(figures.values())))
        for name, times in figures.items():
            median = _median(times)
            spread = (f"{median:.2f}", f"{min(times):.2f}", f"{max(times):.2f}")
            table.add_row(text, name, *spread, f"{first / median:.2f}x")
    stdout.print(table)
    stdout.print(
        f"{platform.processor() or platform.machine()}, torch threads "
        f"{torch.get_num_threads()}, {runs} runs in turns"
    )


def time_in_turns(
    compiled: dict[str, Callable[..., object]], batch: dict[str, Tensor], runs: int
) -> dict[str, list[float]]:
    """Return the milliseconds of each run; the callables take turns, after two warm-up rounds."""
    import torch

    figures: dict[str, list[float]] = {name: [] for name in compiled}
    with torch.no_grad():
        for turn in range(runs + 2):
            for name, function in compiled.items():
                start = time.perf_counter()
                function(**batch)
                if turn >= 2:
                    figures[name].append((time.perf_counter() - start) * 1e3)
    return figures


def random_batch(program: Program, batch: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of the given size: random tokens, a mask of ones, zeros for the rest."""
    import torch

    vocabulary = int(program.config.get("vocab_size", 100))
    found = {}
    sizes = {"batch": batch, "sequence": tokens}
    for spec in program.signature.inputs:
        dims = [sizes.get(d, tokens) if isinstance(d, str) else d for d in spec.dims]
        if spec.name == "input_ids":
            found[spec.name] = torch.randint(vocabulary // 10, vocabulary, dims, dtype=spec.dtype)
        elif "mask" in spec.name:
            found[spec.name] = torch.ones(dims, dtype=spec.dtype)
        else:
            found[spec.name] = torch.zeros(dims, dtype=spec.dtype)
    return found


def _parse_shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    if not (batch.isdigit() and tokens.isdigit() and int(batch) and int(tokens)):
        raise DataError(f"{text!r} is not BATCHxTOKENS", who="bench", where="--shape")
    return int(batch), int(tokens)


def _median(times: list[float]) -> float:
    ordered = sorted(times)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
