"""What every kernel sees: its step (constants of the plan) and its job (facts of this call).

A kernel is `void kernel(i64 *step, i64 *job)`. Step and job are arrays of 64-bit words whose
meaning is given by name here, for the emitter and for the plan alike.

A buffer is known to the plan as *bytes per token*: with T tokens it starts at `arena + offset * T`,
so one plan serves every batch size and sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from sparsefx.backends.cpu.codegen.ir import Function, Value
from sparsefx.backends.cpu.codegen.panel import Panel

__all__ = ["JOB_FIELDS", "SEQUENCE_WORDS", "Frame", "open_frame"]

JOB_FIELDS = (
    "part",  # number of this part of the job
    "parts",  # parts of every step that are done at the same time
    "by_panel",  # 1: parts of what works on panels are panels; 0: they are rows
    "scratch",  # memory of this part alone
    "sequences",  # int32 [sequence_count, 4], see SEQUENCE_WORDS
    "sequence_count",
    "tables",  # pointers to the caller's arrays: indices in, results out
    "arena",  # tokens of the batch
    "tokens",
    "panels",
    "arena_1",  # one token per sequence (pooled)
    "tokens_1",
    "panels_1",
    "hidden",  # for each token 0, or -1e30 for one that no other token sees: see kernels.distances
)
"""Words of a job. Three exist once per space: all tokens, one token per sequence."""

_SPACE_WORDS = 3

SequenceWord = Literal["first", "length", "row", "slot"]
SEQUENCE_WORDS: tuple[SequenceWord, ...] = get_args(SequenceWord)
"""Of each sequence: its first token, its tokens, its row of the batch, its place in the space with
one token per sequence."""


@dataclass(frozen=True)
class Frame:
    """A kernel under construction: the function, its panel, its step and job."""

    f: Function
    panel: Panel
    fields: tuple[str, ...]

    def word(self, name: str) -> Value:
        """The step's word `name` as an integer."""
        return self.f.load("i64", self._slot(name))

    def number(self, name: str) -> Value:
        """The step's word `name` as the float whose bits are its lower half."""
        return self.f.load("float", self._slot(name))

    def pointer(self, name: str) -> Value:
        """The step's word `name` as a pointer."""
        return self.f.load("ptr", self._slot(name))

    def job(self, name: str, space: Value | int = 0) -> Value:
        """The job's word `name`; words of a space are taken from space number `space`."""
        slot = self.f.offset(self.f.argument("job"), 8 * JOB_FIELDS.index(name))
        if isinstance(space, Value):
            slot = self.f.offset(slot, space * (8 * _SPACE_WORDS))
        elif space:
            slot = self.f.offset(slot, 8 * _SPACE_WORDS * space)
        kind = "ptr" if name in ("scratch", "sequences", "tables", "hidden") else "i64"
        kind = "ptr" if name.startswith("arena") else kind
        return self.f.load(kind, slot)

    def sequence(self, number: Value, *names: SequenceWord) -> list[Value]:
        """What the job says of a sequence, by its number."""
        place = self.f.offset(self.job("sequences"), number * (4 * len(SEQUENCE_WORDS)))
        words = (self.f.index("i32", place, SEQUENCE_WORDS.index(name)) for name in names)
        return [self.f.convert("zext", word, "i64") for word in words]

    def buffer(self, name: str, space: Value | int = 0) -> Value:
        """Start of the buffer whose offset per token is the step's word `name`."""
        offset = self.word(name) * self.job("tokens", space)
        return self.f.offset(self.job("arena", space), offset)

    def share(self, total: Value) -> tuple[Value, Value]:
        """This part's range of `total` equal units."""
        part, parts = self.job("part"), self.job("parts")
        return total * part // parts, total * (part + 1) // parts

    def units(self, total: Value) -> Iterator[Value]:
        """Loop over this part's share of `total` equal units."""
        start, stop = self.share(total)
        yield from self.f.loop(start, stop)

    def panels(self, space: Value | int = 0) -> tuple[Value, Value]:
        """This part's panels of a space: all of them, unless parts are panels."""
        count = self.job("panels", space)
        return self._either(self.share(count), (self.f.i64(0), count))

    def unit_range(self, total: Value) -> tuple[Value, Value]:
        """This part's share of `total` equal units of a panel: all of them if parts are panels."""
        return self._either((self.f.i64(0), total), self.share(total))

    def each_unit(self, total: Value, space: Value | int = 0) -> Iterator[tuple[Value, Value]]:
        """Loop over this part's panels, and in each over its share of `total` equal units.

        Parts that are no panels take the same share of every panel's rows in all kernels: what a
        thread reads it has mostly written itself, and lies in its own cache.

        Yields:
            (panel, unit).
        """
        start, stop = self.unit_range(total)
        for number in self.f.loop(*self.panels(space)):
            for unit in self.f.loop(start, stop):
                yield number, unit

    def _either(
        self, if_panels: tuple[Value, Value], else_: tuple[Value, Value]
    ) -> tuple[Value, Value]:
        """One of two ranges: the first where parts are panels."""
        by_panel = self.f.compare(self.job("by_panel"), "==", 1)
        pairs = zip(if_panels, else_, strict=True)
        first, last = (self.f.select(by_panel, a, b) for a, b in pairs)
        return first, last

    def _slot(self, name: str) -> Value:
        return self.f.offset(self.f.argument("step"), 8 * (1 + self.fields.index(name)))


def open_frame(name: str, panel: Panel, fields: tuple[str, ...]) -> Frame:
    """Start a kernel called `name` whose step has these words after its function pointer."""
    return Frame(Function(name, ("step", "job")), panel, fields)
