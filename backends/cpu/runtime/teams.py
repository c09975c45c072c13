"""How many threads share one slab, and by what: measured while the model runs.

Two cores are not always twice as fast: with few tokens the threads wait for each other at every
step, and cores that share no third-level cache pass every activation through memory. Nothing but
time tells; results are the same bits in every way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Team", "Teams"]

_FIRST = 3
"""Runs of each way before the fastest is kept; the first one may have cold caches."""

_SHARE, _MOST = 0.2, 0.25
"""How far a run moves what is known of its way, a moving mean: a share of the difference, of which
at most this part of what is known counts. A single run that was held up says little; a way that is
fast at times and slow at others is as good as its mean."""

_AGAIN = 32
"""One in so many runs tries another way, because the machine may have changed."""


@dataclass(frozen=True)
class Team:
    """A way to share a slab.

    Attributes:
        threads: Threads that work.
        by_panel: Whether they divide linears by panels (of tokens) instead of rows.
    """

    threads: int
    by_panel: bool = False


@dataclass
class _Record:
    runs: int = 0
    seconds: float = float("inf")


@dataclass
class Teams:
    """The ways for slabs of one shape and what they took.

    Args:
        threads: Threads of the pool.
        panels: Panels of the slab.
    """

    threads: int
    panels: int
    _records: dict[Team, _Record] = field(default_factory=dict)
    _runs: int = 0

    def __post_init__(self) -> None:
        ways = [Team(1)]
        if self.threads > 1:
            ways.append(Team(self.threads))
        if self.threads > 1 and self.panels >= self.threads:
            ways.append(Team(self.threads, by_panel=True))
        self._records = {way: _Record() for way in reversed(ways)}

    def choose(self) -> Team:
        """The way to take now."""
        self._runs += 1
        fresh = min(self._records, key=lambda way: self._records[way].runs)
        if self._records[fresh].runs < _FIRST or self._runs % _AGAIN == 0:
            return fresh
        return self.best

    @property
    def best(self) -> Team:
        """The fastest on average."""
        return min(self._records, key=lambda way: self._records[way].seconds)

    def took(self, way: Team, seconds: float) -> None:
        """Note a run; what is known follows a change of the machine."""
        record = self._records[way]
        record.runs += 1
        if record.runs <= 2:
            record.seconds = min(record.seconds, seconds)
            return
        most = _MOST * record.seconds
        record.seconds += _SHARE * max(-most, min(most, seconds - record.seconds))
