"""How busy the device of a run is, and how full its memory: asked at most every few seconds, for all pages together."""

import threading
import time
from dataclasses import dataclass

import psutil

from trainer import nvidia

VALID = 3.0  # seconds that an answer is used for


@dataclass(frozen=True)
class Load:
    """Share of the device that is busy, 0 to 1, and its memory in bytes."""

    busy: float
    used: float
    total: float


_lock = threading.Lock()
_latest: dict[bool, tuple[float, Load | None]] = {}


def current(device: str) -> Load | None:
    """Return the load of the device with this name; None if nothing on this machine tells it."""
    on_cpu = device == "CPU"
    with _lock:
        asked, load = _latest.get(on_cpu, (-VALID, None))
        if time.monotonic() - asked >= VALID:
            load = _of_cpu() if on_cpu else _of_card(device)
            _latest[on_cpu] = time.monotonic(), load
    return load


def _of_cpu() -> Load:
    memory = psutil.virtual_memory()
    return Load(psutil.cpu_percent() / 100, memory.total - memory.available, memory.total)


def _of_card(device: str) -> Load | None:
    for name, busy, used, total in nvidia.usage():
        if name in device or device in name:
            return Load(busy, used, total)
    return None
