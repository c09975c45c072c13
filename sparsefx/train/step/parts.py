"""A batch computed in parts, in several processes or one after the other, as if it were whole.

The loss of a batch is a sum of means, and a mean over a batch is no mean of the means of its parts.
So that the gradients of the parts add up to those of the whole batch, to rounding,

- all parts are padded to the longest example of the batch,
- the loss of a part counts by its share of the examples, the loss against the labels by its share
  of the labels,
- where the graph divides by the number of tokens or labels, ``clamp(sum(...), 1)`` of its inputs,
  a part divides by that of the whole batch times its share. A number that is drawn (the tokens that
  ``masked-lm`` hides) is only known where it is drawn, and stays that of the part,
- what is chosen once for a batch (the modules that ``replace-modules`` replaces) is drawn before,
  from a seed for each step, and given to all parts.

Observers move once for each batch. Every part moves them from where they stood, and the smallest
minimum and the largest maximum of all parts is what stays. An observer's step is monotone in what
it saw, so that is what it would be, had it seen the whole batch; only the values that are quantized
within this step are, in each part, by what this part has seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import sparsefx.graph.fake_quantization  # noqa: F401  # registers the operators
from sparsefx.program import Program
from sparsefx.train.step.counts import Counts
from sparsefx.train.step.loss import LABELS, BatchLoss
from sparsefx.train.step.processes import Processes

__all__ = ["PartedBatch", "Ranges", "bounds", "find_ranges", "part_sizes"]


class PartedBatch:
    """Computes the gradients of a batch in parts.

    Args:
        loss: What is minimised.
        parameters: What is trained, in the same order in every process.
        processes: Each computes a share of the batch.
        accumulate: Parts that each process computes one after the other.
        seed: Of what is chosen for a whole batch, and of dropout where there are several processes:
            both are drawn anew for each step.
    """

    def __init__(
        self,
        loss: BatchLoss,
        parameters: Sequence[nn.Parameter],
        processes: Processes,
        accumulate: int,
        seed: int,
    ) -> None:
        self._loss = loss
        self._parameters = parameters
        self._processes = processes
        self._accumulate = accumulate
        self._seed = seed
        self._counts = Counts(loss.program)
        self._ranges = Ranges(loss.program)
        self._trained: list[bool] | None = None

    def backward(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Compute the gradients of the whole batch, in every process.

        Args:
            batch: All examples, the same in every process.
            step: Steps done.

        Returns:
            The values of ``loss.names`` for the whole batch, by their names.
        """
        if self._processes.count > 1:
            # A state for each process and step: nothing has to be kept to go on from here.
            torch.manual_seed(self._seed_of(step, self._processes.rank))
        inputs = self._loss.inputs(batch)
        labels = batch.get(LABELS)
        rows = len(next(iter(inputs.values())))
        counts = self._counts.of(inputs)
        drawn = self._counts.drawn(inputs, self._seed_of(step, "all"), self._loss.device)
        numbers = torch.zeros(len(self._loss.names), device=self._loss.device)
        self._ranges.begin()
        for first, last in self._mine(rows):
            share = (last - first) / rows
            part = {name: tensor[first:last] for name, tensor in inputs.items()}
            part.update({name: count * share for name, count in counts.items()}, **drawn)
            ours = None if labels is None else labels[first:last]
            label_share = self._loss.label_share(ours, labels)
            with self._ranges.part():
                total, values = self._loss.of(self._counts.forward, part, ours, share, label_share)
            total.backward()  # type: ignore[no-untyped-call]  # torch's
            numbers += torch.stack(values)
        self._ranges.end(self._processes)
        return dict(zip(self._loss.names, self._add_up(numbers), strict=True))

    def _seed_of(self, step: int, whose: object) -> int:
        return zlib.crc32(f"{self._seed}/{step}/{whose}".encode())

    def _mine(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield where the parts of this process begin and end; an empty one is left out."""
        parts = bounds(rows, self._processes.count * self._accumulate)
        start = self._processes.rank * self._accumulate
        return (part for part in parts[start : start + self._accumulate] if part[0] < part[1])

    def _add_up(self, numbers: Tensor) -> Tensor:
        """Add gradients and numbers up over all processes."""
        if self._processes.count == 1:
            return numbers
        if self._trained is None:  # follows from the graph: the same in every step
            mine = [parameter.grad is not None for parameter in self._parameters]
            self._trained = self._processes.any(mine)
        chosen = [p for p, has in zip(self._parameters, self._trained, strict=True) if has]
        flat = torch.cat([*(_gradient(parameter).flatten() for parameter in chosen), numbers])
        self._processes.add_up(flat)
        sizes = [*(parameter.numel() for parameter in chosen), len(numbers)]
        *gradients, numbers = torch.split(flat, sizes)
        for parameter, gradient in zip(chosen, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return numbers


def _gradient(parameter: nn.Parameter) -> Tensor:
    given = parameter.grad
    return torch.zeros_like(parameter) if given is None else given


def bounds(rows: int, parts: int) -> list[tuple[int, int]]:
    """Return where the parts of a batch begin and end; their sizes differ by at most one.

    >>> bounds(7, 3)
    [(0, 2), (2, 4), (4, 7)]
    """
    edges = [rows * place // parts for place in range(parts + 1)]
    return list(pairwise(edges))


def part_sizes(sizes: Collection[int], parts: int) -> set[int]:
    """Return the sizes of the parts of batches.

    >>> part_sizes({8, 6}, 4)
    {1, 2}
    """
    return {last - first for rows in sizes for first, last in bounds(rows, parts)} - {0}


def find_ranges(program: Program) -> list[tuple[str, str]]:
    """Return the names of the smallest and largest value that each observer has seen."""
    observe = torch.ops.sparsefx.observe.default
    nodes: Any = program.graph.find_nodes(op="call_function", target=observe)
    return [(str(node.args[1].target), str(node.args[2].target)) for node in nodes]


class Ranges:
    """The ranges of all observers, while parts of a batch move them.

    Args:
        program: May hold no observer at all.
    """

    def __init__(self, program: Program) -> None:
        found = find_ranges(program)
        self._low = [program.tensor(low) for low, _ in found]
        self._high = [program.tensor(high) for _, high in found]

    def _now(self) -> Tensor:
        """Return minima and negated maxima, whose smaller values are those of the wider range."""
        return torch.stack([*self._low, *(-high for high in self._high)])

    @torch.no_grad()
    def _set(self, values: Tensor) -> None:
        low, high = values.chunk(2)
        for tensor, value in zip((*self._low, *self._high), (*low, *-high), strict=True):
            tensor.copy_(value)

    def begin(self) -> None:
        """Begin a batch: the parts go out from the ranges as they are now."""
        if self._low:
            self._start = self._now()
            self._widest = torch.full_like(self._start, float("inf"))

    @contextmanager
    def part(self) -> Iterator[None]:
        """Let a part move the ranges."""
        if not self._low:
            yield
            return
        self._set(self._start)
        yield
        self._widest = torch.minimum(self._widest, self._now())

    def end(self, processes: Processes) -> None:
        """Set the ranges to the widest of all parts, of this process and of the others."""
        if self._low:
            processes.lowest(self._widest)
            self._set(self._widest)
