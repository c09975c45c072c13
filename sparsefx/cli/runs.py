"""What ``demo`` and ``compress`` share: train with progress bars, export, report."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsefx.cli import LEADS
from sparsefx.cli.console import say, show_table, stderr, stdout
from sparsefx.errors import ArtifactError, SparsefxError, UnrepresentableError
from sparsefx.extras import need

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsefx.instruments.timing import Latency
    from sparsefx.program import Program
    from sparsefx.recipe import Recipe
    from sparsefx.report.run import ReportRow
    from sparsefx.target import Target
    from sparsefx.train.evaluation import SessionData
    from sparsefx.train.results import RunResult, StageResult

__all__ = ["Timed", "chosen_stages", "train_and_report"]

Timed = Literal["all", "ends", "last"]
_PAGE, _HUGGINGFACE = "report.html", "huggingface"
_TIMED_TOKENS = 32  # of the sentence that is timed, unless run or model take fewer


def train_and_report(
    recipe: Recipe,
    model: nn.Module | Program,
    data: SessionData,
    folder: Path,
    *,
    title: str,
    target: str = "onnxruntime",
    tensorboard: bool = False,
    timed: Timed = "all",
) -> RunResult:
    """Run a recipe to its end and leave table, page, exported model and Hugging Face folder.

    Of several processes the first does all but the training.

    ``timed`` says which of the scored stages are lowered and timed; an export takes about as long
    as 30 training steps of a small model.

    Raises:
        ArtifactError: Something beside the run's own results could not be written; all else is.
    """
    from sparsefx import registry
    from sparsefx.cli.progress import SessionProgress
    from sparsefx.train.events import Listener, TensorBoard
    from sparsefx.train.runfolder import check_new_run
    from sparsefx.train.session import Session

    # A wrong name or option, or a package that is needed in the end, is refused before hours of
    # training.
    chosen = registry.parse_target(target)
    chosen.check_machine()
    need("report", who="report")
    if LEADS:
        check_new_run(folder, (_PAGE, _HUGGINGFACE, chosen.saves_as))
    if LEADS and recipe.description:
        stderr.print(f"{recipe.name}: {recipe.description}")
    with SessionProgress() as progress:
        listeners: list[Listener] = [progress]
        if tensorboard and LEADS:
            listeners.append(TensorBoard(folder / "tensorboard"))
        result = Session(recipe, model, data, folder, listeners=listeners).run()
    if not LEADS:
        return result
    stderr.print("exporting and timing")
    rest = _Afterwards(folder)
    latencies: dict[str, Latency] = {}
    timed_on = ""
    with rest.part("the export"):
        tokens = min(_TIMED_TOKENS, recipe.data.max_length)
        latencies, timed_on = _export(result, folder, chosen, timed, tokens)
    with rest.part("the Hugging Face folder"):
        _save_pretrained(result.program, folder / _HUGGINGFACE, data.tokenizer)
    rows = _show(result, latencies, timed_on)
    with rest.part("the report"):
        _report(result, rows, timed_on, title, recipe.description)
    rest.finish()
    return result


class _Afterwards:
    """What follows a finished run: a part that cannot be written does not take others along."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failed: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note why the part ``name`` could not be written."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError, SparsefxError) as error:
            why = error.told if isinstance(error, SparsefxError) else str(error)
            self._failed.append(f"{name}: {why}")

    def finish(self) -> None:
        """Raise what was noted."""
        if self._failed:
            listed = "".join(f"\n  - {why}" for why in self._failed)
            raise ArtifactError(
                f"the run is finished and its results are saved; what could not be done:{listed}",
                who="run",
                where=str(self._folder),
                hint="mend that and run the same command again: it trains nothing anew",
            )


def _export(
    result: RunResult, folder: Path, target: Target, timed: Timed, tokens: int
) -> tuple[dict[str, Latency], str]:
    """Lower scored stages, save the last and time them in turns."""
    from sparsefx.instruments.timing import machine, time_in_turns

    runs: dict[str, Callable[..., object]] = {}
    scored = [stage for stage in result.stages if stage.score is not None]
    for stage in chosen_stages(scored, timed):
        is_last = stage.name == result.stages[-1].name
        run = _lowered(stage, target, folder / target.saves_as if is_last else None)
        gc.collect()  # torch.export, of which onnxruntime makes use, leaves cycles with the module
        if run is not None:
            runs[stage.name] = run
    if not runs:
        return {}, ""
    tokens, batch = _sentence(result.program, tokens)
    latencies = time_in_turns(runs, batch, runs=31)
    timed_on = f"Timed on {target}: one sentence of {tokens} tokens, 31 runs in turns; {machine()}."
    if len(runs) < len(scored):
        timed_on += " What was not exported is not timed: sparsefx bench times any Program."
    return latencies, timed_on


def _lowered(
    stage: StageResult, target: Target, saved: Path | None
) -> Callable[..., object] | None:
    """Lower a stage, save that where it is wanted, and return what runs it; None if nothing can."""
    try:
        compiled = target.compile(_without_masks(stage.program()))
    except SparsefxError as error:
        lacking = "not timed" if saved is None else "neither exported nor timed"
        stderr.print(f"{stage.name} is {lacking}: {error}")
        return None
    if saved is not None:
        stderr.print(f"{stage.name} exported to {compiled.save(saved)}")
    # Stages are timed in turns, so all are in memory then: without what running them does not need.
    runner: Callable[..., object] = getattr(compiled, "runner", compiled)
    return runner


def _sentence(program: Program, tokens: int) -> tuple[int, dict[str, Tensor]]:
    """Return a random sentence of so many tokens, or of fewer if the model takes fewer."""
    from sparsefx.inputs.lengths import most_tokens
    from sparsefx.instruments.timing import random_batch

    taken = min(tokens, most_tokens(program.config) or tokens)
    return taken, random_batch(program, 1, taken)


def chosen_stages(scored: list[StageResult], timed: Timed) -> list[StageResult]:
    """Return the stages that are lowered and timed."""
    if timed == "last":
        return scored[-1:]
    return scored if timed == "all" or len(scored) < 2 else [scored[0], scored[-1]]


def _without_masks(program: Program) -> Program:
    """Fold masks, which a stage in the middle of a run still has."""
    from sparsefx.pipeline import Pipeline
    from sparsefx.properties import Property

    masked = Property.MASKED in program.properties
    return Pipeline.parse("fold-masks").run(program, in_place=True) if masked else program


def _save_pretrained(program: Program, folder: Path, tokenizer: Any) -> None:
    from sparsefx.huggingface import from_transformers, save_pretrained

    if not from_transformers(program):
        stderr.print("no Hugging Face folder: the model did not come from Hugging Face")
        return
    try:
        save_pretrained(program, folder)
    except UnrepresentableError as error:
        stderr.print(f"no Hugging Face folder: {error}")
        return
    tokenizer.save_pretrained(folder)
    stderr.print(f"Hugging Face folder {folder}")


def _show(result: RunResult, latencies: dict[str, Latency], timed_on: str) -> tuple[ReportRow, ...]:
    """Print the table of the run and return its rows."""
    from sparsefx.report.run import HEAD, HOW_COUNTED, cells, report_rows, scored_on

    rows = report_rows(result, latencies)
    show_table(HEAD, [cells(row) for row in rows])
    if rows:
        say(f"{scored_on(rows[0])} {HOW_COUNTED}")
    if timed_on:
        say(timed_on)
    stdout.print(f"results {result.folder / 'result.json'}")
    return rows


def _report(
    result: RunResult, rows: tuple[ReportRow, ...], timed_on: str, title: str, lead: str
) -> None:
    from sparsefx.report.run import run_page

    page = run_page(result, rows, title=title, lead=lead, timed_on=timed_on)
    path = page.write(result.folder / _PAGE, "Made by sparsefx.")
    stdout.print(f"report {path}")
