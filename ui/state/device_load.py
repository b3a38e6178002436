"""Load and memory of the device of a run, asked at most every few seconds for all pages together."""

import threading
import time
from dataclasses import dataclass

import psutil

from trainer.machine import nvidia

VALID = 3.0  # seconds that an answer is used for
MEASURED_FOR = 0.1  # seconds; without them psutil would count from this thread's last request, and say 0 to its first


@dataclass(frozen=True)
class Load:
    """Share of the device that is busy, 0 to 1, and its memory in bytes."""

    busy: float
    used: float
    total: float


_lock = threading.Lock()
_latest: dict[str, tuple[float, Load | None]] = {}


def current(device: str, card: str = "") -> Load | None:
    """Return the load of the device with this name and, of several cards, number; None if nothing here tells it."""
    on_cpu, key = device == "CPU", card or device
    with _lock:
        measured_at, load = _latest.get(key, (-VALID, None))
        if time.monotonic() - measured_at >= VALID:
            load = _of_cpu() if on_cpu else _of_card(device, card)
            _latest[key] = time.monotonic(), load
    return load


def _of_cpu() -> Load:
    memory = psutil.virtual_memory()
    return Load(psutil.cpu_percent(MEASURED_FOR) / 100, memory.total - memory.available, memory.total)


def _of_card(device: str, number: str) -> Load | None:
    for card in nvidia.usage():
        if number in ("", card.number) and (card.name in device or device in card.name):
            return Load(card.busy, card.used, card.total)
    return None
