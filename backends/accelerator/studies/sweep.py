"""Many simulations: architectures x compressions x patterns or saved Programs, resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

from sparsefx.backends.accelerator.hardware.archfile import dump_architecture, load_architecture
from sparsefx.backends.accelerator.simulation.tile_level import simulate
from sparsefx.backends.accelerator.workload.bert import (
    EncoderSize,
    Zeros,
    check_ratio,
    encoder_workload,
)
from sparsefx.backends.accelerator.workload.operations import Workload
from sparsefx.backends.accelerator.workload.programs import workload_of
from sparsefx.errors import SparsefxError, TargetError
from sparsefx.extras import need
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.program import Program
from sparsefx.report.page import Page, paragraph, table
from sparsefx.report.svg import COLOURS, Axis, Canvas

__all__ = [
    "SIZES",
    "Pattern",
    "Point",
    "Result",
    "grid",
    "program_grid",
    "run_point",
    "run_sweep",
    "write_sweep",
]

Pattern = Zeros | Literal["saved"]
SIZES = {"bert-base": EncoderSize(), "bert-large": EncoderSize.large()}


@dataclass(frozen=True)
class Point:
    """One simulation of a sweep: an encoder's sizes, an architecture and a kind of zeros.

    Attributes:
        ratio: Dense weights over those that are left, in the encoder's linears.
        pattern: How the zeros are drawn; ``saved`` for those of a Program.
        size: Name of an encoder's sizes, or the folder of a saved Program.
        fingerprint: Of that Program, so that a changed one is simulated again.
        machine: Hash of an architecture file, for the same reason; "" for a preset.
    """

    arch: str
    ratio: float
    pattern: Pattern = "balanced"
    size: str = "bert-base"
    batch: int = 1
    tokens: int = 128
    fingerprint: str = ""
    machine: str = ""

    @property
    def key(self) -> str:
        """Text that names the point in the file of results."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Result:
    """What came out of a point; `error` says why nothing did."""

    point: Point
    cycles: float = 0.0
    milliseconds: float = 0.0
    sequences_per_second: float = 0.0
    millijoules: float = 0.0
    dram_megabytes: float = 0.0
    utilisation: float = 0.0
    error: str = ""


def grid(
    archs: Iterable[str],
    ratios: Iterable[float],
    patterns: Iterable[Pattern],
    *,
    size: str = "bert-base",
    batch: int = 1,
    tokens: int = 128,
) -> list[Point]:
    """All combinations, in order.

    Raises:
        TargetError: When a pattern has no zeros of a ratio.
    """
    points = [
        Point(arch, ratio, pattern, size, batch, tokens, machine=machine_hash(arch))
        for arch, ratio, pattern in product(archs, ratios, patterns)
    ]
    for point in points:
        check_ratio(point.ratio, point.pattern)
    return points


def program_grid(
    archs: Iterable[str], folders: Iterable[str | Path], *, batch: int = 1, tokens: int = 128
) -> list[Point]:
    """Each architecture with each saved Program, with its real non-zeros.

    Raises:
        ArtifactError: When a folder holds no saved Program.
    """
    programs = [(str(folder), Program.load(folder)) for folder in folders]
    return [
        Point(
            arch,
            ratio,
            "saved",
            name,
            batch,
            tokens,
            program.fingerprint()[:16],
            machine_hash(arch),
        )
        for name, program in programs
        for ratio in (_ratio(program),)
        for arch in archs
    ]


def _ratio(program: Program) -> float:
    share = program.facts(SparsityStats).encoder
    return round(share.values / max(share.values - share.zeros, 1), 2) if share.values else 1.0


def machine_hash(arch: str) -> str:
    """Hash of the numbers in an architecture file; "" for a preset."""
    if not Path(arch).is_file():
        return ""
    text = json.dumps(dump_architecture(load_architecture(arch)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_point(point: Point) -> Result:
    """Simulate one point; a machine that cannot run it gives a result with an error."""
    try:
        arch = load_architecture(point.arch)
        run = simulate(_workload(point, arch.value_bits.value == 8), arch)
    except SparsefxError as error:
        return Result(point, error=error.why)
    return Result(
        point,
        run.cycles,
        run.seconds * 1e3,
        run.throughput,
        sum(run.energy.values()) / 1e9,
        run.dram_bytes / 1e6,
        run.utilisation,
    )


def _workload(point: Point, integers: bool) -> Workload:
    if point.pattern == "saved":
        program = Program.load(point.size)
        return workload_of(program, integers=integers, batch=point.batch, tokens=point.tokens)
    if point.size not in SIZES:
        raise TargetError(f"no size {point.size!r}; known: {', '.join(SIZES)}", who="sweep")
    return encoder_workload(
        SIZES[point.size],
        batch=point.batch,
        tokens=point.tokens,
        ratio=point.ratio,
        zeros=point.pattern,
        distinct=False,
    )


def run_sweep(
    points: list[Point],
    folder: Path,
    *,
    jobs: int = 1,
    ray_address: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Run what is not in `folder/points.jsonl` yet and return all results in order.

    Every finished point is appended at once, so a sweep that was stopped goes on where it was.

    Args:
        points: What to simulate.
        folder: Where the results lie.
        jobs: Processes on this machine.
        ray_address: Address of a Ray cluster (`auto` or `local`); needs the package ray.
        progress: Called with how many points are done and how many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "points.jsonl"
    known = _read(file)
    todo = [point for point in dict.fromkeys(points) if point.key not in known]
    progress(len(points) - len(todo), len(points))
    runner = _on_ray(todo, ray_address) if ray_address else _here(todo, jobs)
    with file.open("a", encoding="utf-8") as out:
        if known and not file.read_text(encoding="utf-8").endswith("\n"):
            out.write("\n")  # the last line of a sweep that was killed
        for done, result in enumerate(runner, start=len(points) - len(todo) + 1):
            known[result.point.key] = result
            out.write(json.dumps(asdict(result)) + "\n")
            out.flush()
            progress(done, len(points))
    return [known[point.key] for point in points]


def _read(file: Path) -> dict[str, Result]:
    found: dict[str, Result] = {}
    if not file.exists():
        return found
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            tree = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that was cut off
        result = Result(**{**tree, "point": Point(**tree["point"])})
        found[result.point.key] = result
    return found


def _here(points: list[Point], jobs: int) -> Iterator[Result]:
    if jobs <= 1 or len(points) < 2:
        yield from map(run_point, points)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_point, point) for point in points]):
            yield future.result()


def _on_ray(points: list[Point], address: str) -> Iterator[Result]:
    need("ray", who="sweep", otherwise="leave the address out to use this machine")
    import ray

    ours = not ray.is_initialized()
    ray.init(address=address, ignore_reinit_error=True)
    try:
        remote = ray.remote(run_point)
        waiting = [remote.remote(point) for point in points]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        if ours:
            ray.shutdown()


def write_sweep(results: list[Result], folder: Path) -> tuple[Path, Path]:
    """Write `sweep.csv` and `sweep.html` (table and plot) and return their paths."""
    columns = [*asdict(results[0].point), *(k for k in asdict(results[0]) if k != "point")]
    rows = [{**asdict(r.point), **{k: v for k, v in asdict(r).items() if k != "point"}}
            for r in results]  # fmt: skip
    sheet = folder / "sweep.csv"
    with sheet.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
    page = Page("Sweep", f"{len(results)} simulations; none is a measurement.")
    drawn = [r for r in results if r.point.pattern != "saved" and not r.error]
    saved = [r for r in results if r.point.pattern == "saved" and not r.error]
    if drawn:
        page.section("Throughput against compression", _curves(drawn))
    if saved:
        page.section("Throughput of the saved Programs", _bars(saved))
    failed = [r for r in results if r.error]
    if failed:
        told = [f"{r.point.arch}, {r.point.size}, {r.point.ratio:g}x: {r.error}" for r in failed]
        page.section("Not simulated", *(paragraph(text) for text in told))
    page.section("Results", table(list(_SHOWN), [_shown(result) for result in results]))
    return sheet, page.write(folder / "sweep.html")


_SHOWN: Final = (
    "architecture", "model", "compression", "zeros", "batch x tokens", "ms", "sequences/s", "mJ",
    "external MB", "multipliers busy",
)  # fmt: skip


def _shown(result: Result) -> list[str]:
    """The row of one result, as under `_SHOWN`; the CSV file has every figure in full."""
    point = result.point
    figures = (
        f"{result.milliseconds:,.4g}",
        f"{result.sequences_per_second:,.1f}",
        f"{result.millijoules:,.3f}",
        f"{result.dram_megabytes:,.3f}",
        f"{result.utilisation:.1%}",
    )
    return [
        point.arch,
        _model(point),
        f"{point.ratio:g}x",
        point.pattern,
        f"{point.batch} x {point.tokens}",
        *(figures if not result.error else ("",) * len(figures)),
    ]


def _model(point: Point) -> str:
    """The size, or the last two parts of a saved Program's path."""
    return "/".join(Path(point.size).parts[-2:]) if point.pattern == "saved" else point.size


def _curves(results: list[Result]) -> str:
    """Sequences a second by compression, a line for each architecture and pattern."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        name = f"{result.point.arch}, {result.point.pattern}"
        lines.setdefault(name, []).append((result.point.ratio, result.sequences_per_second))
    canvas = Canvas(900, max(380, 58 + 18 * len(lines)), "throughput against compression")
    values = [v for points in lines.values() for _, v in points]
    most = max(x for points in lines.values() for x, _ in points)
    x = Axis(0, most * 1.05, 80, 640)
    y = Axis(min(values) / 1.5, max(values) * 1.5, 330, 15, log=True)
    canvas.axes(x, y, "dense over remaining weights", "sequences a second")
    groups, row = _coinciding(lines), 0
    for number, names in enumerate(groups):
        colour, told = COLOURS[number % len(COLOURS)], {name: dict(lines[name]) for name in names}
        points = sorted(told[names[0]].items())
        canvas.line([(x(a), y(b)) for a, b in points], colour)
        for a, b in points:
            tip = "\n".join(f"{name}: {a:g}x, {found[a]:,.1f}" for name, found in told.items())
            canvas.dot(x(a), y(b), colour, tip)
        canvas.rect(660, 20 + 18 * row, 11, 18 * len(names) - 7, colour)
        for name in names:
            canvas.text(677, 30 + 18 * row, name)
            row += 1
    if len(groups) < len(lines):
        canvas.text(660, 34 + 18 * row, "beside one bar: equal within 1 %")
    return canvas.render()


def _coinciding(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[list[str]]:
    """The names, those together whose lines would hide one another."""
    found: list[list[str]] = []
    for name, points in lines.items():
        group = next((names for names in found if _is_hidden(lines[names[0]], points)), None)
        if group is None:
            found.append([name])
        else:
            group.append(name)
    return found


def _is_hidden(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> bool:
    """Whether all points of two lines differ by less than what is seen, a pixel."""
    pairs = [*zip(sorted(first), sorted(second), strict=False)]
    near = all(a == c and math.isclose(b, d, rel_tol=0.01) for (a, b), (c, d) in pairs)
    return near and len(first) == len(second)


def _bars(results: list[Result]) -> str:
    """Sequences a second, a bar for each Program and architecture, with its compression."""
    archs = list(dict.fromkeys(result.point.arch for result in results))
    canvas = Canvas(900, 46 + 20 * len(results), "throughput of saved Programs")
    x = Axis(0, max(result.sequences_per_second for result in results), 330, 780)
    for row, result in enumerate(results):
        point, y = result.point, 8 + 20 * row
        name = f"{_model(point)} ({point.ratio:g}x) on {point.arch}"
        canvas.text(324, y + 12, name[-52:], "end")
        colour = COLOURS[archs.index(point.arch) % len(COLOURS)]
        canvas.rect(330, y, x(result.sequences_per_second) - 330, 14, colour, point.size)
        canvas.text(
            x(result.sequences_per_second) + 6, y + 12, f"{result.sequences_per_second:,.1f}"
        )
    canvas.text(555, 30 + 20 * len(results), "sequences a second", "middle")
    return canvas.render()
