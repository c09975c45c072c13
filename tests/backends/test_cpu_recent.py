"""What a model on the cpu keeps of batches that it saw: the last kinds of them alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparsefx.backends.cpu.runtime.recent import KEPT, Recent


def test_what_was_not_asked_for_the_longest_time_goes() -> None:
    recent: Recent[int, str] = Recent()
    for key in range(KEPT):
        recent.keep(key, str(key))
    assert recent.get(0) == "0"  # and so it is not the next to go
    recent.keep(KEPT, "new")
    assert recent.get(1) is None
    assert [recent.get(key) for key in (0, 2, KEPT)] == ["0", "2", "new"]
    assert len(recent) == KEPT


def test_a_kind_of_batch_may_have_several_values() -> None:
    recent: Recent[int, int] = Recent(each=3)
    for key in range(4 * KEPT):
        recent.keep(key, key)
    assert len(recent) == 3 * KEPT
    recent.clear()
    assert len(recent) == 0


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_threads_share_it() -> None:
    recent: Recent[int, int] = Recent()

    def work(first: int) -> bool:
        keys = [(first + 7 * step) % (3 * KEPT) for step in range(3000)]
        return all((recent.get(key) or recent.keep(key, key + 1)) == key + 1 for key in keys)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(recent) <= KEPT
