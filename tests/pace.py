"""Seconds as this machine counts them, for what must not take forever.

Any work takes more CPU seconds on a slow processor, on a core shared with another process, and under coverage, whose
tracer alone makes the piece of work below take more than twice as long. That does not tell anything about the code. So
a limit grows by as much as this piece of work takes longer just now.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

COUNT = 400_000
SECONDS = 0.02  # of an idle core of 2023 for `COUNT` additions


def slowness() -> float:
    """Return how many times as long as on that core a piece of work takes just now, at least 1."""
    begun = time.process_time()
    total = 0
    for number in range(COUNT):
        total += number
    return max(1.0, (time.process_time() - begun) / SECONDS)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if what is done here takes more CPU seconds of this process than that, on such a core."""
    begun = time.process_time()
    yield
    spent = time.process_time() - begun
    if spent >= seconds:
        limit = seconds * max(slowness() for _ in range(10))
        assert spent < limit, f"it took {spent:.1f} s, at most {limit:.1f} s are expected of this machine"
