"""Many simulations: architectures x compressions x patterns or saved Programs, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from sparsefx.backends.accelerator.hardware.archfile import dump_architecture, load_architecture
from sparsefx.backends.accelerator.hardware.own_code import own_sources
from sparsefx.backends.accelerator.simulation.tile_level import simulate
from sparsefx.backends.accelerator.workload.bert import (
    EncoderSize,
    Zeros,
    check_ratio,
    encoder_workload,
)
from sparsefx.backends.accelerator.workload.operations import Workload
from sparsefx.backends.accelerator.workload.programs import workload_of
from sparsefx.errors import ArtifactError, SparsefxError, TargetError
from sparsefx.extras import need
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.program import Program

__all__ = [
    "PAGE",
    "SHEET",
    "SIZES",
    "Pattern",
    "Point",
    "Result",
    "finished_points",
    "grid",
    "program_grid",
    "run_point",
    "run_sweep",
]

Pattern = Zeros | Literal["saved"]
PAGE, SHEET, _POINTS = "sweep.html", "sweep.csv", "points.jsonl"
SIZES = {"bert-base": EncoderSize(), "bert-large": EncoderSize.large()}


@dataclass(frozen=True)
class Point:
    """One simulation of a sweep: an encoder's sizes, an architecture and a kind of zeros.

    Attributes:
        ratio: Dense weights over those that are left, in the encoder's linears.
        pattern: How the zeros are drawn; ``saved`` for those of a Program.
        size: Name of an encoder's sizes, or the folder of a saved Program.
        fingerprint: Of that Program, so that a changed one is simulated again.
        machine: Hash of an architecture file, and of the code of an engine or format that is not
            of sparsefx, for the same reason; "" for a preset.
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
    """Hash of the numbers in an architecture file, and of code that it names; "" for a preset."""
    if not Path(arch).is_file():
        return ""
    machine = load_architecture(arch)
    digest = hashlib.sha256(json.dumps(dump_architecture(machine), sort_keys=True).encode())
    for file in own_sources(machine):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
    """Run what is not in `folder/points.jsonl` yet, or failed, and return all results in order.

    Every finished point is appended at once, so a sweep that was stopped goes on where it was.

    Args:
        points: What to simulate.
        folder: Where the results lie.
        jobs: Processes on this machine.
        ray_address: Address of a Ray cluster (`auto` or `local`); needs the package ray.
        progress: Called with how many points are done and how many there are.

    Raises:
        ArtifactError: The folder holds files of these names that are not of a sweep.
    """
    known = finished_points(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _POINTS
    todo = [point for point in dict.fromkeys(points) if point.key not in known]
    progress(len(points) - len(todo), len(points))
    runner = _on_ray(todo, ray_address) if ray_address else _here(todo, jobs)
    with file.open("a", encoding="utf-8") as out:
        if file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            out.write("\n")  # the last line of a sweep that was killed
        for done, result in enumerate(runner, start=len(points) - len(todo) + 1):
            known[result.point.key] = result
            out.write(json.dumps(asdict(result)) + "\n")
            out.flush()
            progress(done, len(points))
    return [known[point.key] for point in points]


def finished_points(folder: Path) -> dict[str, Result]:
    """Return what a sweep in a folder has simulated, by keys; points that failed are run again.

    Raises:
        ArtifactError: The folder holds files of these names that are not of a sweep.
    """
    file = folder / _POINTS
    if not file.exists():
        if there := [name for name in (SHEET, PAGE) if (folder / name).exists()]:
            raise ArtifactError(
                f"it is not the folder of a sweep, which would replace {' and '.join(there)} in it",
                who="sweep",
                where=str(folder),
                hint="choose another folder",
            )
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    results = (_result(line, f"{file}, line {number}") for number, line in enumerate(lines, 1))
    return {each.point.key: each for each in results if each is not None and not each.error}


def _result(line: str, where: str) -> Result | None:
    """Return the result in a line; None when it was cut off."""
    try:
        tree = json.loads(line)
    except json.JSONDecodeError:
        return None
    try:
        return Result(**{**tree, "point": Point(**tree["point"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"it is no result of a sweep: {type(error).__name__} {error}",
            who="sweep",
            where=where,
            hint="choose another folder, or remove the file to begin anew",
        ) from error


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
