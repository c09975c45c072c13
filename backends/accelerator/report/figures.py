"""The figures of the report page, each a function from a simulation to SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isnan
from typing import Final

from sparsefx.backends.accelerator.engines.base import group_sum
from sparsefx.backends.accelerator.simulation.energy import LEVELS
from sparsefx.backends.accelerator.simulation.roofline import roofline
from sparsefx.backends.accelerator.simulation.tile_level import WATERFALL, OpResult, Simulation
from sparsefx.backends.accelerator.studies.sensitivity import LESS, MORE, VISIBLE, Swing, in_percent
from sparsefx.backends.accelerator.workload.operations import MatmulOp
from sparsefx.report.svg import COLOURS, Axis, Canvas, plain, short

__all__ = [
    "ANTON_POINTS",
    "compression_curve",
    "energy_stack",
    "gantt",
    "heat_map",
    "over_ideal",
    "roofline_plot",
    "tornado",
    "waterfall",
    "worst_balanced",
]

ANTON_POINTS: Final = {1: 800, 2: 1580, 4: 3030, 8: 5490, 16: 9320, 20: 10820}
"""Sentences a second by compression on ANTON, BERT-base with 128 tokens, digitised from the
SparseBERT paper's figure (Xu et al. 2021), within 25 sentences."""

_ANTON_MACS: Final = 11.17e9
"""Multiplications of BERT-base with 128 tokens, for which the points hold."""

_KINDS: Final = {
    "load": "#d9822b",
    "compute": "#2f6fb0",
    "vector": "#6b9e3f",
    "store": "#b5483d",
    "host": "#7d5ba6",
    "launch": "#7a8087",
}

_MOST_CORES: Final = 16
"""Lanes of the Gantt chart; the cores of one array do much the same."""

_MOST_HEAT_MAPS: Final = 3
_EVEN: Final = 1.01
"""Below this balance one heat map says it all."""

_RATIOS: Final = (1, 2, 4, 8, 16, 20, 32)
"""Compressions of the machine's curve: those that are published, and one beyond."""

_MOST_SWINGS: Final = 12


def waterfall(run: Simulation) -> str:
    """From ideal work to the result: what each cause adds."""
    canvas = Canvas(880, 30 + 26 * (len(WATERFALL) + 1), "waterfall")
    axis = Axis(0, run.cycles, 170, 690)
    at = 0.0
    for row, cause in enumerate(WATERFALL):
        cycles, y = run.waterfall[cause], 10 + 26 * row
        canvas.text(160, y + 14, cause, "end")
        share = f"{short(cycles)} cycles, {cycles / run.cycles:.1%}"
        if cycles > 0:
            canvas.rect(axis(at), y, axis(at + cycles) - axis(at), 18, COLOURS[row], share)
        canvas.text(axis(at + cycles) + 6, y + 14, share)
        at += cycles
    y = 10 + 26 * len(WATERFALL)
    canvas.text(160, y + 14, "result", "end")
    canvas.rect(axis(0), y, axis(run.cycles) - axis(0), 18, "#3b4048")
    canvas.text(axis(run.cycles) + 6, y + 14, f"{short(run.cycles)} cycles")
    return canvas.render()


def gantt(run: Simulation) -> str:
    """What each resource does when; neighbouring tasks of one operation are drawn as one bar."""
    shown = min(run.machine.cores, _MOST_CORES)
    lanes = _bars(run, shown)
    cores = [f"core {n}" for n in range(shown)]
    order = [lane for lane in ("dram", "host", "front", *cores, "vector") if lane in lanes]
    canvas = Canvas(900, 50 + 17 * len(order), "Gantt chart")
    axis = Axis(0, run.cycles, 70, 880)
    for row, lane in enumerate(order):
        y = 8 + 17 * row
        canvas.text(64, y + 11, lane, "end", 10.5)
        for start, end, kind, name in lanes[lane]:
            tip = f"{run.workload.titles[name]}: {kind}, {start:,.0f} to {end:,.0f}"
            canvas.rect(axis(start), y, axis(end) - axis(start), 13, _KINDS[kind], tip)
    bottom = 8 + 17 * len(order)
    for value in axis.ticks():
        canvas.text(axis(value), bottom + 14, short(value), "middle", 10.5)
    left_out = (
        f"cycles; {run.machine.cores - shown} more cores" if run.machine.cores > shown else ""
    )
    canvas.text(880, bottom + 34, left_out or "cycles", "end", 10.5)
    for column, (kind, colour) in enumerate(_KINDS.items()):
        canvas.rect(70 + 110 * column, bottom + 24, 11, 11, colour)
        canvas.text(86 + 110 * column, bottom + 34, kind, size=10.5)
    return canvas.render()


def _bars(run: Simulation, cores: int) -> dict[str, list[tuple[float, float, str, str]]]:
    """By resource (start, end, kind, operation), in cycles; of the first cores alone."""
    lanes: dict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    slack = run.cycles / 2000
    for task in run.tasks:
        if task.cycles <= 0 or (isinstance(task.resource, int) and task.resource >= cores):
            continue
        bars = lanes[f"core {task.resource}" if isinstance(task.resource, int) else task.resource]
        name, start = run.ops[task.op].name, task.start
        if bars and bars[-1][3] == name and start - bars[-1][1] < slack:
            start = bars.pop()[0]
        bars.append((start, task.end, task.kind, name))
    return lanes


def roofline_plot(run: Simulation) -> str:
    """Each product by its intensity and its rate, below the machine's two roofs.

    Weights that stay on chip are not read while a run lasts: external memory is then no roof, and
    drawn dashed. A product lasts as long as its transfer, even where that was done ahead of it.
    """
    machine = run.machine
    on_chip = run.schedule.resident
    peak = machine.engine.peak * machine.cores * machine.clock
    rate = machine.dram_rate * machine.clock
    bounds = {point.name: point for point in roofline(run.workload, run.architecture).points}
    points = []
    for op in run.ops:
        if op.macs and op.macs.executed and bounds[op.name].bytes:
            bound = bounds[op.name]
            transfer = 0.0 if on_chip else bound.transfer
            seconds = max(op.end - op.start, transfer, 1.0) / machine.clock
            intensity = op.macs.executed / bound.bytes
            points.append((intensity, op.macs.executed / seconds, op))
    canvas = Canvas(880, 360, "roofline")
    if not points:
        canvas.text(20, 30, "no product reads weights")
        return canvas.render()
    low = min(*(p[0] for p in points), peak / rate) / 4
    high = max(*(p[0] for p in points), peak / rate) * 4
    x = Axis(low, high, 80, 860, log=True)
    y = Axis(min(min(p[1] for p in points), low * rate) / 2, peak * 2, 310, 15, log=True)
    canvas.axes(x, y, "executed MACs for each byte of weights", "MACs a second")
    ridge = peak / rate
    canvas.line([(x(low), y(low * rate)), (x(ridge), y(peak))], "#3b4048", "5 4" if on_chip else "")
    canvas.line([(x(low if on_chip else ridge), y(peak)), (x(high), y(peak))], "#3b4048")
    canvas.text(x(high), y(peak) - 6, f"peak, {short(peak)} MAC/s", "end")
    told = "external memory (weights stay on chip)" if on_chip else "external memory"
    middle = (low * ridge) ** 0.5
    canvas.text(x(middle) + 12, y(middle * rate) + 16, f"{told}, {short(rate)}B/s")
    for intensity, speed, op in points:
        roof = peak if on_chip else min(peak, intensity * rate)
        tip = f"{run.workload.titles[op.name]}: {short(speed)} MAC/s, {speed / roof:.0%} of roof"
        canvas.dot(x(intensity), y(speed), COLOURS[0], tip)
    return canvas.render()


def worst_balanced(run: Simulation) -> list[OpResult]:
    """The products that lose most time to elements above the mean, the worst first."""
    with_heat = [op for op in run.ops if op.heat is not None and op.heat.sum() and op.busy]
    worst = sorted(with_heat, key=lambda op: -op.busy * (1 - 1 / balance(op)))
    even = bool(worst) and balance(worst[0]) < _EVEN
    return worst[: 1 if even else _MOST_HEAT_MAPS]


def balance(op: OpResult) -> float:
    """Work that all wait for over mean work: the sum of the blocks' maxima over their means."""
    if op.heat is None or not op.heat.sum():
        return 1.0
    return float(op.heat.max(axis=0).sum() / op.heat.mean(axis=0).sum())


def over_ideal(run: Simulation, op: OpResult) -> float:
    """Cycles of the array over those of its executed multiplications alone; at least 1."""
    if not op.macs or not op.macs.executed:
        return 1.0
    return max(op.engine_cycles * run.machine.engine.peak / op.macs.executed, 1.0)


def heat_map(op: OpResult) -> str:
    """Work of each element (down) and k block (across) of one product."""
    if op.heat is None:
        return ""
    heat = op.heat
    rows, columns = heat.shape
    if columns > 96:
        step = -(-columns // 96)
        heat = group_sum(heat, step, axis=1)
        columns = heat.shape[1]
    width, height = min(800 / columns, 24), min(260 / rows, 9)
    canvas = Canvas(max(80 + columns * width, 560), 60 + rows * height, f"work of %{op.name}")
    top, mean = float(heat.max()), float(heat.mean())
    for row in range(rows):
        for column in range(columns):
            value = float(heat[row, column])
            canvas.rect(
                60 + column * width,
                34 + row * height,
                width,
                height,
                "#8a1f11" if value > 1.5 * mean else "#2f6fb0",
                f"element {row}, block {column}: {short(value)}, {value / mean:.2f} of the mean",
                round(value / top, 2),
            )
    told = f"{rows} elements, {columns} k blocks; {balance(op):.2f} times the mean is waited for"
    canvas.text(60, 13, told)
    canvas.text(60, 28, "darker: more work; red: over 1.5 times the mean")
    canvas.text(60, 50 + rows * height, "k blocks")
    canvas.text(20, 34 + rows * height / 2, "elements", "middle", turn=-90)
    return canvas.render()


def energy_stack(run: Simulation) -> str:
    """Energy by level, for kinds of operations and in all."""
    groups: dict[str, dict[str, float]] = {}
    for op, result in zip(run.workload.ops, run.ops, strict=True):
        kind = op.kind
        if isinstance(op, MatmulOp):
            kind = "linear" if op.has_weights else "attention"
        target = groups.setdefault(kind, dict.fromkeys(LEVELS, 0.0))
        for level, energy in result.energy.items():
            target[level] += energy
    groups["all"] = run.energy
    canvas = Canvas(880, 60 + 24 * len(groups), "energy")
    top = sum(groups["all"].values()) or 1.0
    axis = Axis(0, top, 110, 760)
    for row, (kind, levels) in enumerate(groups.items()):
        y, at = 8 + 24 * row, 0.0
        canvas.text(104, y + 13, kind, "end")
        for colour, level in zip(COLOURS, LEVELS, strict=False):
            energy = levels[level]
            if energy > 0:
                tip = f"{level}: {short(energy)} pJ"
                canvas.rect(axis(at), y, axis(at + energy) - axis(at), 17, colour, tip)
            at += energy
        canvas.text(axis(at) + 5, y + 13, f"{plain(at / 1e6, 0)} uJ")
    for column, (colour, level) in enumerate(zip(COLOURS, LEVELS, strict=False)):
        canvas.rect(110 + 90 * column, 28 + 24 * len(groups), 11, 11, colour)
        canvas.text(126 + 90 * column, 38 + 24 * len(groups), level, size=10.5)
    return canvas.render()


def compression_curve(run: Simulation) -> str:
    """Throughput against compression: this machine's bound, ANTON's points, and this run."""
    machine = run.machine
    products = run.workload.matmuls
    linear = sum(op.dense_macs for op in products if op.has_weights)
    rest = sum(op.dense_macs for op in products if not op.has_weights)
    peak = machine.engine.peak * machine.cores * machine.clock / machine.compute_cycles(1, True)
    batch = run.workload.batch
    skips = "weight" in machine.engine.skips
    curve = {c: batch * peak / (linear / (c if skips else 1) + rest) for c in _RATIOS}
    stored = sum(op.macs.executed for op in run.ops if op.macs)
    ratio = linear / max(stored - rest, 1) if skips else 1.0
    published = ANTON_POINTS if _is_bert_base(linear + rest, batch) else {}
    top, last = max(*curve.values(), *published.values(), run.throughput) * 1.1, _RATIOS[-1]
    canvas = Canvas(880, 360, "throughput against compression")
    x, y = Axis(0, last * 1.02, 80, 860), Axis(0, top, 310, 15)
    canvas.axes(x, y, "dense over remaining weights", "sequences a second")
    canvas.line([(x(c), y(v)) for c, v in curve.items()], COLOURS[0])
    canvas.text(x(last) - 8, y(curve[last]) - 8, "compute bound", "end")
    for c, value in published.items():
        canvas.dot(x(c), y(value), COLOURS[1], f"ANTON, published: {c}x, {value}")
    if published:
        canvas.text(x(20) + 8, y(ANTON_POINTS[20]) + 14, "ANTON, published")
    own, at_end = min(ratio, last), ratio > 0.9 * last
    told = f"this run, {ratio:,.0f}x" if ratio > last else "this run"
    canvas.dot(x(own), y(run.throughput), COLOURS[3], told, 5)
    aside, anchor = (-8, "end") if at_end else (8, "start")
    canvas.text(x(own) + aside, min(y(run.throughput) + 14, 304), told, anchor)
    return canvas.render()


def tornado(swings: Sequence[Swing]) -> str:
    """The numbers that move the result most, with a bar for less and a bar for more of each."""
    shown = [s for s in swings if s.size >= VISIBLE][:_MOST_SWINGS]
    canvas = Canvas(880, 50 + 24 * len(shown), "sensitivity")
    top = max((s.size for s in shown), default=1.0)
    axis = Axis(-top, top, 400, 800)
    for row, swing in enumerate(shown):
        y = 8 + 24 * row
        canvas.text(330, y + 13, f"{swing.path}, {swing.measure}", "end")
        for value, colour in ((swing.less, COLOURS[0]), (swing.more, COLOURS[1])):
            if not isnan(value):
                left, right = sorted((axis(0), axis(value)))
                canvas.rect(left, y, right - left, 16, colour, in_percent(value), 0.8)
        low, high = sorted((swing.less, swing.more), key=lambda value: (isnan(value), value))
        canvas.text(axis(-top) - 6, y + 13, in_percent(low), "end", 10.5)
        canvas.text(axis(top) + 6, y + 13, in_percent(high), size=10.5)
    bottom = 14 + 24 * len(shown)
    for at, (text, colour) in enumerate(((LESS, COLOURS[0]), (MORE, COLOURS[1]))):
        canvas.rect(400 + 110 * at, bottom, 11, 11, colour)
        canvas.text(416 + 110 * at, bottom + 10, text, size=10.5)
    return canvas.render()


def _is_bert_base(macs: float, batch: int) -> bool:
    return abs(macs / batch / _ANTON_MACS - 1) < 0.05
