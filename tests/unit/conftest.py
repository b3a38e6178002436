"""Fixtures of the page's tests."""

import sys
from pathlib import Path

import pytest

from tests.unit.ui.answers import answers
from trainer import runs
from trainer.runs import events
from ui.state import gauging
from ui.tabs import train


@pytest.fixture
def finished(character: Path) -> runs.Run:
    run = train.create(answers())
    folder = run.folder / "checkpoints" / "000005"
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"a")
    (run.folder / "rin.safetensors").write_bytes(b"a")
    for event in (
        events.Started(step=0, steps=9, pid=1, device="CPU"), events.Checkpoint(step=5, folder="checkpoints/000005"),
        events.Checkpoint(step=2, folder="checkpoints/000002"), events.Finished(step=9, export="rin.safetensors"),
    ):  # fmt: skip
        run.report(event)
    return run


@pytest.fixture(autouse=True)
def no_gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro is not asked about pictures: that takes a process which loads it."""
    monkeypatch.setattr(gauging, "COMMAND", (sys.executable, "-c", ""))
    monkeypatch.setattr(gauging, "MOMENT", 60.0)
    monkeypatch.setattr(gauging, "_checks", [])  # none that another test has begun
