"""Why every linear got its format: candidates with their costs, and from which sparsity zeros pay.

How the tables of embeddings are stored stands before them.

Costs are modelled (see `costs`); where the steps were timed, the rate that each linear reached
stands beside what a core can do at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsefx.backends.cpu.lowering.costs import dense_cost
from sparsefx.backends.cpu.lowering.layer import Layer
from sparsefx.backends.cpu.measure.rates import Rates
from sparsefx.backends.cpu.plan.plan import SEQUENCES, Step
from sparsefx.backends.cpu.plan.weights import SHORT, TILED, Format

__all__ = ["Explanation", "LayerCosts", "StoredTables", "explain_layers", "stored_tables"]

_PANEL = 64
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LayerCosts:
    """What one linear costs on a batch.

    Attributes:
        layer: What was decided.
        costs: Nanoseconds of one core on the whole batch, for each format it could have.
        products: Multiply-adds that its kernel does on the batch: of non-zeros, or of all weights.
        measured: Nanoseconds that it took on one core, or None.
        peak: Multiply-adds per nanosecond of one core at most.
    """

    layer: Layer
    costs: dict[Format, float]
    products: int
    measured: float | None
    peak: float

    @property
    def chosen(self) -> float:
        """Nanoseconds in the format it got."""
        return self.costs[self.layer.format]

    @property
    def dense(self) -> float:
        """Nanoseconds when every weight is visited."""
        return dense_cost(self.costs)

    @property
    def why(self) -> str:
        """Why it got its format, in one sentence."""
        choice = self.layer.choice
        if self.layer.format == choice.format:
            return choice.reason
        return f"asked for; {choice.format} would be {self.chosen / min(self.costs.values()):.1f}x"

    @property
    def achieved(self) -> str:
        """The rate it reached against the core's peak, "" if it was not timed."""
        if self.measured is None:
            return ""
        rate = self.products / self.measured
        return (
            f"    measured {self.measured / 1e3:,.1f} us: {rate:.1f} of {self.peak:.0f} GMAC/s, "
            f"{rate / self.peak:.0%} of the core's peak\n"
        )

    def __str__(self) -> str:
        layer, choice = self.layer, self.layer.choice
        kind = "int8" if layer.integer else "fp32"
        costs = ", ".join(f"{name} {cost / 1e3:,.1f}" for name, cost in self.costs.items())
        needed = f"{max(0.0, 1 - choice.break_even):.1%}"
        how = "timed on its weights" if choice.timed else "modelled"
        return (
            f"{layer.title} (%{'+%'.join(layer.nodes)}): {kind} [{layer.rows}, {layer.columns}], "
            f"sparsity {1 - choice.density:.1%} -> {layer.format}\n"
            f"    us ({how}): {costs}; break-even sparsity {needed}\n"
            f"    {self.why}; {layer.packed_bytes:,} bytes\n" + self.lost + self.achieved
        )

    @property
    def lost(self) -> str:
        """What was left out of the weight, "" if nothing was."""
        rows, columns = self.layer.dropped
        if not rows and not columns:
            return ""
        return f"    left out: {rows} rows that nothing reads, {columns} columns\n"


@dataclass(frozen=True)
class StoredTables:
    """The tables of one sum of embeddings, as they are stored.

    Attributes:
        node: What their sum is called in listings.
        tables: Type, rows and channels of each.
        stored_bytes: Of all, with the scales of int8 rows.
    """

    node: str
    tables: tuple[tuple[str, int, int], ...]
    stored_bytes: int

    def __str__(self) -> str:
        each = [f"{kind} [{rows}, {channels}]" for kind, rows, channels in self.tables]
        scales = (
            "; int8 rows have a scale each"
            if any(kind == "int8" for kind, _, _ in self.tables)
            else ""
        )
        return f"{self.node}: tables {', '.join(each)}{scales}; {self.stored_bytes:,} bytes\n"


@dataclass(frozen=True)
class Explanation:
    """All linears of a Program on one batch; its text is deterministic unless steps were timed.

    Attributes:
        shape: Sequences of the batch and tokens of each, without padding.
        isa: Instruction set, and why it is not a wider one where that is to be told.
        rates: What the costs were computed with.
        layers: One entry for each linear kernel, in order.
        others: Nanoseconds of the other steps by kind, if they were timed.
        linears: Linears of the graph, and how many of them run in PyTorch.
        heads: Heads of attention that nothing reads, and that were left out.
        apart: Seconds that PyTorch takes for what no kernel computes; None if that is nothing, or
            was not timed.
        embeddings: How the tables of embeddings are stored.
    """

    shape: tuple[int, int]
    isa: str
    rates: Rates
    layers: tuple[LayerCosts, ...]
    others: Mapping[str, float]
    linears: tuple[int, int] = (0, 0)
    heads: int = 0
    apart: float | None = None
    embeddings: tuple[StoredTables, ...] = ()

    @property
    def gain(self) -> float:
        """Cost of all linears when every weight is visited, over that of the chosen formats."""
        chosen = sum(layer.chosen for layer in self.layers)
        return sum(layer.dense for layer in self.layers) / chosen if chosen else 1.0

    def __str__(self) -> str:
        return self._framed("".join(str(layer) for layer in self.layers))

    def summary(self) -> str:
        """The same, with one entry for all linears of one shape that got one format."""
        groups: dict[tuple[object, ...], list[LayerCosts]] = {}
        for found in self.layers:
            layer = found.layer
            shape = (layer.rows, layer.columns, layer.integer, layer.space)
            key = (*shape, layer.format, layer.choice.timed, tuple(found.costs))
            groups.setdefault(key, []).append(found)
        return self._framed("".join(_together(group) for group in groups.values()))

    def _framed(self, entries: str) -> str:
        """Entries between what holds for all: the machine above, the sums below."""
        batch, tokens = self.shape
        dense = [layer for layer in self.layers if layer.layer.format.startswith("dense")]
        chosen = sum(layer.chosen for layer in self.layers)
        total, outside = self.linears
        apart = f"{outside} of {total} linears run in PyTorch, outside the plan{self._share()}\n"
        others = "".join(f"{kind}: {cost / 1e3:,.1f} us\n" for kind, cost in self.others.items())
        rows, columns = (sum(found.layer.dropped[n] for found in self.layers) for n in (0, 1))
        left = f"left out: {self.heads} heads, {rows} rows and {columns} columns of linears\n"
        return (
            f"{batch}x{tokens} tokens, {self.isa}, one core; rates {self.rates.origin}\n"
            + "".join(map(str, self.embeddings))
            + entries
            + others
            + f"{len(self.layers)} linears: {chosen / 1e3:,.1f} us, {self.gain:.2f}x less than "
            f"with every weight visited; zeros do not pay in {len(dense)}\n"
            + (left if rows or columns or self.heads else "")
            + (apart if outside else "")
        )

    def _share(self) -> str:
        """What the part in PyTorch takes of all time, "" if it was not timed."""
        if self.apart is None:
            return ""
        timed = sum(found.measured or 0.0 for found in self.layers) + sum(self.others.values())
        apart = 1e9 * self.apart
        return f": {apart / 1e3:,.1f} us there, {apart / (timed + apart):.0%} of the time"


def _together(group: Sequence[LayerCosts]) -> str:
    """One entry for several linears: their names, and ranges where they differ."""
    if len(group) == 1:
        return str(group[0])
    layers = [found.layer for found in group]
    first = layers[0]
    costs = ", ".join(
        f"{name} {_range([found.costs[name] / 1e3 for found in group], ',.1f')}"
        for name in group[0].costs
    )
    needed = _range([max(0.0, 1 - layer.choice.break_even) for layer in layers], ".1%")
    how = "timed on its weights" if first.choice.timed else "modelled"
    densest = max(group, key=lambda found: found.layer.choice.density)
    peaks = [found.products / found.measured / found.peak for found in group if found.measured]
    achieved = f"    measured: {_range(peaks, '.0%')} of the core's peak\n" if peaks else ""
    return (
        f"{len(group)} linears: {'int8' if first.integer else 'fp32'} "
        f"[{first.rows}, {first.columns}], "
        f"sparsity {_range([1 - layer.choice.density for layer in layers], '.1%')} "
        f"-> {first.format}\n"
        f"    {', '.join(_numbered([layer.title for layer in layers]))}\n"
        f"    us of each ({how}): {costs}; break-even sparsity {needed}\n"
        f"    the densest: {densest.why}; {sum(layer.packed_bytes for layer in layers):,} bytes\n"
        + achieved
    )


def _numbered(titles: Sequence[str]) -> list[str]:
    """Titles, those that differ in the number of a layer alone as one.

    >>> _numbered(["layer.0.query", "layer.1.query", "layer.2.query", "pooler"])
    ['layer.*.query (0 to 2)', 'pooler']
    """
    found: dict[str, list[int]] = {}
    for title in titles:
        number = _NUMBER.search(title)
        form = _NUMBER.sub(".*.", title, count=1)
        found.setdefault(form, []).extend([int(number[1])] if number else [])
    return [_several(form, sorted({*numbers})) for form, numbers in found.items()]


def _several(form: str, numbers: list[int]) -> str:
    if len(numbers) < 2:
        return form.replace(".*.", f".{numbers[0]}.") if numbers else form
    first, last = numbers[0], numbers[-1]
    if numbers == list(range(first, last + 1)):
        return f"{form} ({first} to {last})"
    return f"{form} ({', '.join(map(str, numbers))})"


def _range(values: Sequence[float], form: str) -> str:
    """The smallest and the largest value, or the one that both are as text."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def explain_layers(
    layers: Sequence[Layer],
    isa: str,
    shape: tuple[int, int],
    rates: Rates,
    seconds: Mapping[str, Mapping[str, float]] | None = None,
) -> Explanation:
    """The costs of all linears on a batch without padding.

    Args:
        layers: What was decided.
        isa: Instruction set.
        shape: Sequences, and tokens of each.
        rates: What the formats were chosen by.
        seconds: What the steps took, by kind and by the nodes they compute; None if not timed.
    """
    batch, tokens = shape
    panels = -(-batch * tokens // _PANEL), -(-batch // _PANEL)
    found, known = [], dict((seconds or {}).get("linear", {}))
    for layer in layers:
        pooled = layer.space == SEQUENCES
        every = layer.format.startswith("dense") or layer.format in TILED
        weights = layer.rows * layer.columns if every else layer.nonzeros
        took = known.get("+".join(layer.nodes))
        found.append(
            LayerCosts(
                layer,
                {name: cost * panels[pooled] for name, cost in layer.choice.costs.items()},
                weights * (batch if pooled else batch * tokens),
                None if took is None else took * 1e9,
                _peak(layer.format, rates),
            )
        )
    others = {
        kind: 1e9 * sum(steps.values())
        for kind, steps in (seconds or {}).items()
        if kind != "linear"
    }
    return Explanation(shape, isa, rates, tuple(found), others)


def stored_tables(steps: Sequence[Step]) -> tuple[StoredTables, ...]:
    """How the tables of each sum of embeddings are stored, in the order of the steps."""
    found = []
    for step in steps:
        family, *kinds = step.kernel.spec
        if family != "embedding":
            continue
        channels = int(step.words["rows"])  # type: ignore[arg-type]  # an int
        shapes = [
            (kind, len(step.words[f"table{n}"]), channels)  # type: ignore[arg-type]  # an array
            for n, kind in enumerate(kinds)
        ]
        size = sum(word.nbytes for word in step.words.values() if isinstance(word, np.ndarray))
        found.append(StoredTables(step.node, tuple(shapes), size))
    return tuple(found)


def _peak(format: Format, rates: Rates) -> float:
    """Multiply-adds per nanosecond of one core at most, with the instructions of a format."""
    if format in TILED:
        return rates.peak_tiles
    if format == "dense_amx_bf16":
        return rates.peak_tiles / 2  # as many tiles, half as many products in each
    if format in SHORT:
        return rates.peak_short
    return rates.peak_f32 if format in ("rows", "dense_f32") else rates.peak
