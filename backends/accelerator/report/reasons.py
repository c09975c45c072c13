"""Why a run is not faster: the waterfall in words, with the operations behind each cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from sparsefx.backends.accelerator.engines.base import Engine, Gemm
from sparsefx.backends.accelerator.report.figures import over_ideal
from sparsefx.backends.accelerator.simulation.tile_level import Simulation, simulate
from sparsefx.backends.accelerator.workload.bert import balanced_mask
from sparsefx.backends.accelerator.workload.operations import (
    FLOAT_PRODUCT,
    HostOp,
    MatmulOp,
    Workload,
)
from sparsefx.report.svg import plain, short

__all__ = ["against_dense", "causes", "reasons"]

_LEAST: Final = 0.02
"""Causes with a smaller share of the cycles are left out."""

_HELPS: Final = 0.95
"""A remedy is told of where it leaves less than this share of a product's cycles."""


def against_dense(run: Simulation) -> str:
    """What the zeros save: fewer multiplications, and how much of that becomes time."""
    executed = sum(op.macs.executed for op in run.ops if op.macs)
    dense = run.workload.dense_macs
    if unused := _unused(run):
        return f"{unused[0].upper()}{unused[1:]}."
    if executed == dense:
        return "There are no zeros to skip."
    if not executed:
        return "All multiplications are skipped: the weights are zero."
    faster = simulate(_without_zeros(run.workload), run.architecture).cycles / run.cycles
    return (
        f"Zeros leave {short(executed)} of {short(dense)} multiplications: {dense / executed:.2f} "
        f"times fewer. The run is {faster:.2f} times faster than without zeros."
    )


def _unused(run: Simulation) -> str:
    """Which zeros take no multiplication away, and what would; "" where all do."""
    engine = run.machine.engine
    if "weight" not in engine.skips:
        some = ", and the weights have some" if _unfit(run) else ""
        return f"this engine skips no zeros{some}"
    if not (unfit := _unfit(run)):
        return ""
    told = f"{len(unfit)} products have zeros in no pattern that this engine skips"
    if engine.patterns:
        told += f" ({', '.join(engine.patterns)})"
    told += f", and run dense, as {unfit[0]} does"
    if engine.patterns:
        slots, group = map(int, engine.patterns[0].split(":"))
        options = f"pattern='{slots}:{group}',sparsity={1 - slots / group:g}"
        told += f": magnitude-prune{{{options}}} makes one"
    return told


def _unfit(run: Simulation) -> list[str]:
    """Products that run dense although a twentieth or more of their weights is zero."""
    return [
        run.workload.titles[op.name]
        for op, result in zip(run.workload.ops, run.ops, strict=True)
        if isinstance(op, MatmulOp) and op.nonzero is not None and op.density < 0.95
        if result.macs and result.macs.executed == result.macs.dense
    ]


def _without_zeros(workload: Workload) -> Workload:
    ops = tuple(
        replace(op, weight=None, mask=None, activation=None) if isinstance(op, MatmulOp) else op
        for op in workload.ops
    )
    return replace(workload, ops=ops)


def reasons(run: Simulation) -> tuple[str, ...]:
    """The :func:`causes`, and last of all zeros of weights that save nothing, if none tells it."""
    if "ideal" in _shares(run) or not _unfit(run):
        return causes(run)
    return (*causes(run), f"zeros: {_unused(run)}.")


def causes(run: Simulation) -> tuple[str, ...]:
    """One sentence or more for each cause that takes cycles, the largest first."""
    return tuple(f"{share:.0%} {name}: {_TOLD[name](run)}" for name, share in _shares(run).items())


def _shares(run: Simulation) -> dict[str, float]:
    """The share of the cycles of each cause worth telling, the largest first.

    The multiplications themselves ("ideal") are told of where nothing takes more.
    """
    shares = {cause: cycles / run.cycles for cause, cycles in run.waterfall.items()}
    told = sorted((c for c in _TOLD if shares.get(c, 0) >= _LEAST), key=lambda c: -shares[c])
    if told and told[0] != "ideal":
        told = [cause for cause in told if cause != "ideal"]
    return {cause: shares[cause] for cause in told}


def _ideal(run: Simulation) -> str:
    executed = sum(op.macs.executed for op in run.ops if op.macs)
    dense = run.workload.dense_macs
    text = f"the array works at its peak, on {short(executed)} multiplications"
    if "weight" not in run.machine.engine.skips:
        return f"{text}; this engine skips no zeros, so that pruning takes none of them away."
    if unused := _unused(run):
        return f"{text}; {unused}."
    if executed == dense:
        return f"{text}, all there are, for no weight is zero: magnitude-prune leaves fewer."
    return f"{text} that zeros leave of {short(dense)}; more zeros leave fewer."


def _imbalance(run: Simulation) -> str:
    products = [op for op in run.ops if op.macs and op.macs.executed]
    lost = {op.name: op.engine_cycles * (1 - 1 / over_ideal(run, op)) for op in products}
    worst = sorted(products, key=lambda op: -lost[op.name])
    titles = run.workload.titles
    names = ", ".join(f"{titles[op.name]} ({over_ideal(run, op):.2f})" for op in worst[:3])
    text = f"slots of the array do no work; the most in {names}, times the ideal cycles."
    named = [op for at in worst[:3] for op in run.workload.matmuls if op.name == at.name]
    return " ".join((text, *_remedies(run.machine.engine, named, titles)))


def _remedies(engine: Engine, products: list[MatmulOp], titles: Mapping[str, str]) -> list[str]:
    """What fills the slots of the array, tried on the products that lose the most."""
    told = []
    if pruned := next((op for op in products if 0 < op.density < 1), None):
        gemm = pruned.gemm
        even = balanced_mask(gemm.n, gemm.k, 1 / pruned.density, np.random.default_rng(0))
        less = engine.run(replace(gemm, weight=even)).cycles / engine.run(gemm).cycles
        if less < _HELPS:
            told.append(
                "Rows of pruned weights differ: balance-banks or permute-rows evens them out; "
                f"{titles[pruned.name]} with even rows would take {less:.0%} of its cycles."
            )
    if linear := next((op for op in products if op.has_weights), None):
        less = engine.run(_longer(linear.gemm, 4)).cycles / 4 / engine.run(linear.gemm).cycles
        if less < _HELPS:
            told.append(
                "More tokens at once fill the array: with four times as many "
                f"{titles[linear.name]} would take {less:.0%} of its cycles for each."
            )
    if attention := [titles[op.name] for op in products if not op.has_weights]:
        few = "is too small" if len(attention) == 1 else "are too small"
        told.append(f"{' and '.join(attention)} {few} for the array: longer sequences fill it.")
    return told


def _longer(gemm: Gemm, times: int) -> Gemm:
    active = None if gemm.activation is None else np.tile(gemm.activation, (times, 1))
    return replace(gemm, m=gemm.m * times, activation=active)


def _overheads(run: Simulation) -> str:
    arch = run.architecture
    known = [q for q in (arch.utilisation, arch.sparse_utilisation) if q is not None]
    if known:
        values = " and ".join(f"{q.text} ({q.status})" for q in known)
        return f"the machine's utilisation of {values} stands for what is not modelled."
    return "operands come more slowly from the core's nearest memory than the array takes them."


def _fill(run: Simulation) -> str:
    return "the array fills and drains for every tile; more rows at once make tiles longer."


def _memory(run: Simulation) -> str:
    rate = run.machine.dram_rate * run.machine.clock
    most = _largest({run.workload.titles[op.name]: op.traffic.total for op in run.ops}, "B")
    return (
        f"cores wait for external memory: {plain(run.dram_bytes / 1e6, 2)} MB at {short(rate)}B/s "
        f"take {plain(run.dram_bytes / rate * 1e3, 3)} ms; the most for {most}."
    )


def _metadata(run: Simulation) -> str:
    size = sum(op.traffic.metadata for op in run.ops)
    form = run.architecture.weights.kind
    return f"{plain(size / 1e6, 2)} MB of the traffic are indices and padding of the format {form}."


def _vector(run: Simulation) -> str:
    busy: Counter[str] = Counter()
    for task in run.tasks:
        if task.kind == "vector":
            busy[run.ops[task.op].kind] += round(task.cycles - task.launch)
    text = f"cores wait for the vector unit; it works the most on {_largest(busy, ' cycles')}."
    if FLOAT_PRODUCT in busy:
        text += " Products in float run there: quantize-prepare{requantize='all'} avoids them."
    return text


def _dependencies(run: Simulation) -> str:
    return (
        f"cores wait for each other: {run.machine.cores} of them, and too few tasks at a time; "
        "more sequences at once fill them."
    )


def _launch(run: Simulation) -> str:
    launches = sum(task.kind == "launch" or task.launch > 0 for task in run.tasks)
    named = Counter(op.kind for op in run.workload.ops if isinstance(op, HostOp))
    told = [f"{launches} launches"] if launches else []
    if named:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in named.most_common())
        told.append(f"{named.total()} operations that the machine does not have: {kinds}")
    return f"{' and '.join(told)}."


def _largest(sizes: dict[str, float] | Counter[str], unit: str) -> str:
    best = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({short(size)}{unit})" for name, size in best if size > 0)


_TOLD: Final[dict[str, Callable[[Simulation], str]]] = {
    "ideal": _ideal,
    "imbalance": _imbalance,
    "overheads": _overheads,
    "fill and drain": _fill,
    "DRAM": _memory,
    "metadata": _metadata,
    "vector unit": _vector,
    "dependencies": _dependencies,
    "launch and host": _launch,
}
