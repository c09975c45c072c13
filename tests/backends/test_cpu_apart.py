"""Workers are kept off the core of their caller, where the system lets them."""

from __future__ import annotations

import os
import threading

import pytest

from sparsefx.backends.cpu.runtime.apart import Apart

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="the system does not place threads, or there is one core",
)


@pytest.fixture
def worker() -> threading.Thread:
    """A thread that waits until the test is over."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(10,), daemon=True)
    thread.start()
    return thread


def test_workers_leave_the_callers_core(worker: threading.Thread) -> None:
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    try:
        os.sched_setaffinity(0, {core, max(allowed)})
        Apart([worker]).keep()
        found = os.sched_getaffinity(worker.native_id or 0)
        assert len(found) == 1
        assert found < {core, max(allowed)}
        os.sched_setaffinity(0, {core})  # nowhere else to go: the worker stays where it is
        Apart([worker]).keep()
        assert os.sched_getaffinity(worker.native_id or 0) == found
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_refusal_ends_it(worker: threading.Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        calls.append(given)
        raise PermissionError

    calls: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    apart = Apart([worker])
    apart.keep()
    apart.keep()
    assert len(calls) == 1
