"""`limner queue`: the same queue as on the page."""

import pytest

from tests.integration.runs.test_processes import limner
from tests.unit.ui.tabs.test_queue import NAMES, waiting
from trainer import runs
from trainer.runs import Run

__all__ = ["waiting"]


def test_the_queue_in_the_command_line(waiting: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    assert limner("queue").stdout.split() == [
        "1",
        NAMES[0],
        "Waiting",
        "2",
        NAMES[1],
        "Waiting",
        "3",
        NAMES[2],
        "Waiting",
    ]
    done = limner("queue", "move", NAMES[2], "1")
    assert done.stdout.split()[1::3] == [NAMES[2], NAMES[0], NAMES[1]]
    monkeypatch.chdir(waiting[0].folder.parent)
    assert "On hold" in limner("queue", "hold", waiting[0].folder.name).stdout
    assert waiting[0].on_hold
    assert "On hold" not in limner("queue", "release", str(waiting[0].folder)).stdout
    done = limner("queue", "hold", "none")
    assert (done.returncode, done.stderr) == (
        2,
        "There is no run 'none'. Give its folder, or its name under outputs.\n",
    )
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    assert limner("queue", "retry", NAMES[0]).stderr.startswith("This run is still running.")
    (waiting[0].folder / "ask" / "start").unlink()
    assert limner("queue", "retry", NAMES[0]).stdout.split() == [started[0].id]
    assert started[0].config() == waiting[0].config()
