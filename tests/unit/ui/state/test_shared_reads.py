"""Requests that arrive together share what is read, and none gets what was read before it asked."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from ui.state import shared_reads
from ui.state.shared_reads import KEPT, shared


def at_once(monkeypatch: pytest.MonkeyPatch, key: Hashable, calls: Sequence[Callable[[], object]]) -> list[Any]:
    """Make calls that all wait for what is read under a key, and return their results."""
    reading, may_end, looks = threading.Event(), threading.Event(), list[float]()

    def now() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    def read() -> None:
        reading.set()
        assert may_end.wait(60)

    monkeypatch.setattr(shared_reads, "time", SimpleNamespace(monotonic=now))
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(shared, key, read)
        assert reading.wait(60)
        before = len(looks)
        waiting = [pool.submit(call) for call in calls]
        while len(looks) < before + len(calls):  # each looks at the clock when it asks
            time.sleep(0.01)
        may_end.set()
        first.result()
        return [call.result() for call in waiting]


def test_requests_that_wait_share_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def read() -> int:
        reads.append(len(reads) + 1)
        return reads[-1]

    assert at_once(monkeypatch, "many", [lambda: shared("many", read)] * 20) == [1] * 20


def test_each_later_request_reads_again() -> None:
    values = iter(range(10))
    assert [shared("later", lambda: next(values)) for _ in range(3)] == [0, 1, 2]
    assert shared("other", lambda: "x") == "x"


def test_a_read_that_fails_is_tried_again() -> None:
    with pytest.raises(ZeroDivisionError):
        shared("fails", lambda: 1 / 0)
    assert shared("fails", lambda: 1) == 1


def test_few_results_are_kept() -> None:
    for number in range(3 * KEPT):
        shared(number, lambda: "x")
    assert len(shared_reads._SLOTS) == KEPT


def test_nothing_is_read_twice_in_a_read() -> None:
    values = iter(range(10))

    def look() -> list[int]:
        return [shared("inner", lambda: next(values)) for _ in range(3)]

    assert [shared("outer", look) for _ in range(2)] == [[0, 0, 0], [1, 1, 1]]
