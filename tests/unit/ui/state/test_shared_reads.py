"""Requests that arrive together share what is read, and none gets what was read before it asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from tests.conftest import HANG
from ui.state import shared_reads
from ui.state.shared_reads import KEPT, shared


def test_requests_that_wait_share_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, may_end, looks, reads = threading.Event(), threading.Event(), list[float](), list[int]()

    def now() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    def read() -> int:
        reads.append(len(reads) + 1)
        reading.set()
        assert may_end.wait(HANG)
        return reads[-1]

    monkeypatch.setattr(shared_reads, "time", SimpleNamespace(monotonic=now))
    with ThreadPoolExecutor(21) as pool:
        first = pool.submit(shared, "many", read)
        assert reading.wait(HANG)
        before = len(looks)
        others = [pool.submit(shared, "many", read) for _ in range(20)]
        while len(looks) < before + 20:  # each looks at the clock when it asks
            time.sleep(0.01)
        may_end.set()
        assert first.result() == 1
        assert {other.result() for other in others} == {2}, "the first read began before they asked"
    assert reads == [1, 2]


def test_what_fails_is_read_again_and_few_results_are_kept() -> None:
    with pytest.raises(ZeroDivisionError):
        shared("fails", lambda: 1 / 0)
    assert shared("fails", lambda: 1) == 1
    values = iter(range(10))

    def look() -> list[int]:
        deep = (shared("between", lambda: shared("inner", lambda: next(values))) for _ in range(2))
        return [shared("inner", lambda: next(values)), *deep]

    assert [shared("outer", look) for _ in range(2)] == [[0, 0, 0], [1, 1, 1]]
    for number in range(3 * KEPT):
        shared(number, lambda: "x")
    assert len(shared_reads._SLOTS) == KEPT
