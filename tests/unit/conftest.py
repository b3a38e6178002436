"""Fixtures of the page's tests."""

from pathlib import Path

import pytest

from tests.unit.ui.answers import answers
from trainer import extension, runs
from trainer.extension import Extension
from trainer.runs import events
from ui.tabs import train


@pytest.fixture
def finished(character: Path) -> runs.Run:
    run = train.create(answers())
    folder = run.folder / "checkpoints" / "000005"
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"a")
    (run.folder / "rin.safetensors").write_bytes(b"a")
    run.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
    for step in (5, 2):
        run.report(events.Checkpoint(step=step, folder=f"checkpoints/{step:06d}"))
    run.report(events.Finished(step=9, export="rin.safetensors"))
    return run


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Extension("elsewhere", places=dict.fromkeys(("", "ray"), "trainer.worker:work"))
    monkeypatch.setattr(extension, "installed", lambda: (elsewhere,))
