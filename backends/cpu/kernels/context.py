"""From scores to context, the same for all kernels of attention: softmax and the sum of values.

    scores[key][query]   ->   exp(scale * (score - max)), sum per query            in place
    context[c][query]    = sum over keys of v[c][key] (broadcast) * weights        8 channels

Queries are lanes, and only keys that are visited cost anything. All of it is fp32: with softmax
weights and values of 15 bits the logits of a trained sparse int8 model moved eight times as far
from those of the reference, as a small change of a value moves the codes of later layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.ir import Function, Value, vector
from sparsefx.backends.cpu.codegen.vmath import exp, maximum
from sparsefx.backends.cpu.kernels.place import Place

__all__ = ["SCORE_BYTES", "Keys", "Scores", "context", "softmax"]

SCORE_BYTES = 128
"""Bytes of the scores of a key, at most: two vectors of 16 queries."""

_CHANNELS = 8


@dataclass(frozen=True)
class Keys:
    """Keys that a chunk of queries visits, counted from the sequence; `start` is None for 0."""

    start: Value | None
    stop: Value


@dataclass(frozen=True)
class Scores:
    """Scores of a chunk of queries, fp32 [keys][queries].

    Attributes:
        place: Head and sequence.
        lanes: Queries of a vector.
        memory: Where they lie.
    """

    place: Place
    lanes: int
    memory: Value

    @property
    def f(self) -> Function:
        """The function under construction."""
        return self.place.frame.f

    @property
    def floats(self) -> str:
        """LLVM type of a vector."""
        return vector(self.lanes, "float")

    def at(self, key: Value, vectors: int, number: int) -> Value:
        """Where the scores of a key lie for vector `number` of `vectors`."""
        step = self.lanes * 4
        return self.f.offset(self.memory, key * (vectors * step) + number * step)


def softmax(scores: Scores, keys: Keys, vectors: int, scale: Value | None = None) -> list[Value]:
    """Turn scores into exp(scale * (score - max)), in place; gives their sums per query."""
    f = scores.f
    tops = [f.var(f.const(scores.floats, -3e38)) for _ in range(vectors)]
    for key in f.loop(keys.start or 0, keys.stop):
        for n, top in enumerate(tops):
            score = f.load(scores.floats, scores.at(key, vectors, n))
            top.set(maximum(f, score, top.get()))
    sums = [f.var(f.const(scores.floats, 0)) for _ in range(vectors)]
    for key in f.loop(keys.start or 0, keys.stop):
        for n in range(vectors):
            place = scores.at(key, vectors, n)
            below = f.load(scores.floats, place) - tops[n].get()
            weight = exp(f, below if scale is None else below * scale)
            f.store(weight, place)
            sums[n].set(sums[n].get() + weight)
    return [s.get() for s in sums]


def context(scores: Scores, keys: Keys, targets: list[Value], sums: list[Value]) -> None:
    """Write context[channel][query] to `targets`, divided by the sums of the weights."""
    f = scores.f
    one = f.const(scores.floats, 1.0)
    factors = [one / s for s in sums]
    size = scores.place.frame.word("head_size")
    together = _CHANNELS if scores.lanes == 16 else _CHANNELS // 2
    whole = size // together * together
    for channel in f.loop(0, whole, together):
        _channels(scores, keys, targets, factors, channel, together)
    for channel in f.loop(whole, size):
        _channels(scores, keys, targets, factors, channel, 1)


def _channels(
    scores: Scores,
    keys: Keys,
    targets: list[Value],
    factors: list[Value],
    channel: Value,
    count: int,
) -> None:
    f, row_bytes = scores.f, scores.place.frame.panel.row_bytes
    zero = f.const(scores.floats, 0)
    totals = [[f.var(zero) for _ in targets] for _ in range(count)]
    for key, place in _each_key(scores.place, keys, channel):
        weights = [
            f.load(scores.floats, scores.at(key, len(targets), n)) for n in range(len(targets))
        ]
        for n in range(count):
            value = f.splat(f.load("float", f.offset(place, n * row_bytes)), scores.lanes)
            for total, weight in zip(totals[n], weights, strict=True):
                total.set(f.fma(weight, value, total.get()))
    for n in range(count):
        row = (channel + n) * row_bytes
        for target, total, factor in zip(targets, totals[n], factors, strict=True):
            f.store(total.get() * factor, f.offset(target, row), scores.lanes * 4)


def _each_key(place: Place, keys: Keys, channel: Value) -> Iterator[tuple[Value, Value]]:
    """Loop over the keys, panel by panel: (number of the key, where v[channel][key] lies)."""
    frame, f, width = place.frame, place.frame.f, place.frame.panel.width
    begin = place.first if keys.start is None else place.first + keys.start
    end = place.first + keys.stop
    for number in f.loop(begin // width, (end + (width - 1)) // width):
        left, right = number * width, (number + 1) * width
        start = f.select(f.compare(left, ">", begin), left, begin)
        stop = f.select(f.compare(right, "<", end), right, end)
        rows = number * place.rows["v"] + channel
        base = f.offset(place.starts["v"], rows * frame.panel.row_bytes)
        for token in f.loop(start, stop):
            yield token - place.first, f.offset(base, (token - left) * 4)
