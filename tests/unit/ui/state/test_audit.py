"""The audit log, written to by many requests at once."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ui.state import audit


def test_first_entries_at_once_open_the_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log opened twice is closed by nobody, which Python warns of, and warnings are errors here."""
    threads, interval = 8, sys.getswitchinterval()
    homes = [tmp_path / str(number) for number in range(20)]
    together = threading.Barrier(threads)

    def enter(number: int) -> None:
        together.wait()
        audit.record("login", user=str(number))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for home in homes:
                monkeypatch.setenv("LIMNER_HOME", str(home))
                list(pool.map(enter, range(threads)))
    finally:
        sys.setswitchinterval(interval)
    for home in homes:
        lines = (home / "outputs" / ".audit.log").read_text(encoding="utf-8").splitlines()
        assert sorted(json.loads(line)["user"] for line in lines) == [str(number) for number in range(threads)]
