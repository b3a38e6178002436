"""The load of the device of a run."""

import os
from pathlib import Path

import pytest

from tests.unit.test_nvidia import answering
from ui.state import device_load

CARD = "NVIDIA GeForce RTX 3060"


def test_of_several_cards_it_is_the_load_of_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path / "nvidia-smi", f"echo '0, 10, 1, 8, {CARD}'; echo '1, 90, 2, 8, {CARD}'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(device_load, "_latest", {})
    first, second = device_load.current(CARD), device_load.current(CARD, "1")
    assert [load and load.busy for load in (first, second)] == [0.1, 0.9]
    assert device_load.current(CARD, "7") is None
