"""The subcommands of ``sparsefx``."""

from __future__ import annotations

import logging
import os

import typer
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from sparsefx import __version__
from sparsefx.cli import (
    augment,
    bench,
    capture,
    compress,
    demo,
    evaluate,
    explain_cpu,
    import_,
    inspect,
    opt,
    passes,
    recipes,
    sensitivity,
    simulate,
    sweep,
    targets,
)
from sparsefx.cli.console import stderr

__all__ = ["app"]

app = typer.Typer(
    help="Compress BERT-class encoders: prune, distil, quantize and lower them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.command)
app.command("compress")(compress.command)
app.command("augment")(augment.command)
app.command("evaluate")(evaluate.command)
app.command("capture")(capture.command)
app.command("import")(import_.command)
app.command("passes")(passes.command)
app.command("recipes")(recipes.command)
app.command("targets")(targets.command)
app.command("opt")(opt.command)
app.command("inspect")(inspect.command)
app.command("bench")(bench.command)
app.command("explain-cpu")(explain_cpu.command)
app.command("sensitivity")(sensitivity.command)
app.command("simulate")(simulate.command)
app.command("sweep")(sweep.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparsefx {__version__}")
        raise typer.Exit


class _Lines(logging.Handler):
    """Writes each record as one line: a file has no width to fill, or to break a line at."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            stderr.print(f"{record.levelname:<8} {self.format(record)}")
        except Exception:
            self.handleError(record)


def _handler() -> logging.Handler:
    if not stderr.is_terminal:
        return _Lines()
    return RichHandler(
        console=stderr, highlighter=NullHighlighter(), show_path=False, show_time=False
    )


@app.callback()
def _common(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what the library logs."),
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    # transformers reports every load on the standard error; -v shows it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "info" if verbose else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if verbose else "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_handler()])
    logging.getLogger("sparsefx").setLevel(level)
