"""Share what is read among requests that arrive together, such as those of many pages that are opened at once."""

import threading
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")
KEPT = 8  # results, of the keys that were asked for last


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    started: float = -1.0
    result: Any = None


_SLOTS: dict[Hashable, _Slot] = {}
_LOCK = threading.Lock()
_AS_OF: ContextVar[float | None] = ContextVar("as_of", default=None)


def shared(key: Hashable, read: Callable[[], Result]) -> Result:
    """Return what `read` returns. Its call began after this one, but another thread that waited too may have made it.

    So a result is never older than the request, and of any number of requests that wait only one reads again. What
    `read` itself shares is as of its own beginning, so that nothing is read twice in it, however deep.
    """
    within = _AS_OF.get()  # the beginning of the outermost `read` that this call is part of
    as_of = within or time.monotonic()
    with _LOCK:
        slot = _SLOTS.pop(key, None) or _Slot()
        _SLOTS[key] = slot
        for old in list(_SLOTS)[:-KEPT]:
            del _SLOTS[old]
    with slot.lock:
        if slot.started < as_of:
            started = within or time.monotonic()
            token = _AS_OF.set(started)
            try:
                result = read()  # if it fails, the next one tries again
            finally:
                _AS_OF.reset(token)
            slot.started, slot.result = started, result
        answer: Result = slot.result
        return answer
