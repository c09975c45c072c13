"""How sparse a weight is at which step: the ramp of gradual magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A polynomial ramp, and the window in which masks are chosen anew.

    Steps count optimizer steps since the pass was run: 0 is the run itself, t is after step t.
    Between ``begin`` and ``end`` the sparsity is (Zhu and Gupta 2017; Prune OFA,
    iterative_scheduler.py)

        s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** exponent

    before that 0, after that ``final``. Masks are chosen at ``begin``, then every ``frequency``
    steps until ``update_end``, and at ``end`` and ``update_end`` in any case, so that the final
    sparsity is reached whatever the frequency.

    Attributes:
        final: Sparsity at the end.
        initial: Sparsity at ``begin``.
        begin: First step at which weights are pruned.
        end: Step at which the final sparsity is reached; equal to ``begin`` for one-shot pruning.
        exponent: 3 is the cubic ramp of both papers, 1 a straight line.
        frequency: Steps between two choices of masks.
        update_end: Last step at which masks are chosen; may lie after ``end``.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    end: int = 0
    exponent: float = 3.0
    frequency: int = 1
    update_end: int = 0

    def sparsity(self, step: int) -> float:
        """Return the sparsity that step asks for.

        >>> ramp = Schedule(0.9, end=50_000, frequency=1_000, update_end=80_000)
        >>> [round(ramp.sparsity(t), 4) for t in (1_000, 5_000, 10_000, 25_000, 40_000)]
        [0.0529, 0.2439, 0.4392, 0.7875, 0.8928]
        """
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1.0 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * float(left**self.exponent)

    def updates(self, step: int) -> bool:
        """Return whether masks are chosen anew at ``step``."""
        last = self.last_update
        if not self.begin <= step <= last:
            return False
        return (step - self.begin) % self.frequency == 0 or step in (self.end, last)

    def next_update(self, step: int) -> int | None:
        """Return the first step from ``step`` on at which masks are chosen; None after the last.

        >>> ramp = Schedule(0.9, begin=2, end=9, frequency=3)
        >>> [ramp.next_update(step) for step in (0, 3, 8, 9, 10)]
        [2, 5, 8, 9, None]
        """
        rounds = max(0, -(-(step - self.begin) // self.frequency))
        chosen = (self.begin + rounds * self.frequency, self.end, self.last_update)
        return min((each for each in chosen if step <= each <= self.last_update), default=None)

    def former_update(self, step: int) -> int:
        """Return the last step before ``step`` at which masks are chosen; 0 before the first.

        >>> ramp = Schedule(0.9, begin=2, end=9, frequency=3)
        >>> [ramp.former_update(step) for step in (0, 2, 3, 9, 20)]
        [0, 0, 2, 8, 9]
        """
        rounds = (min(step, self.last_update + 1) - 1 - self.begin) // self.frequency
        chosen = (self.begin + rounds * self.frequency, self.end, self.last_update)
        return max((each for each in chosen if self.begin <= each < step), default=0)

    @property
    def last_update(self) -> int:
        """The step after which the masks stay as they are."""
        return max(self.end, self.update_end)
