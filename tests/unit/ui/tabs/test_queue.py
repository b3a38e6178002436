"""The queue on the page: its order, holds, and what is drawn of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.runs.test_run import held, named
from trainer import runs, storage
from trainer.errors import UserError
from trainer.runs import Run, archive, cards, queue
from ui.state.run_watcher import RunWatcher
from ui.tabs import run_view
from ui.widgets import queue_list

NAMES = ("2026-11-24_140501_rin", "2026-11-24_140502_fox", "2026-11-24_140503_cat")


@pytest.fixture
def waiting(home: Path) -> Iterator[list[Run]]:
    made = [named(name) for name in NAMES]
    with held(cards.known()[0].lock):
        yield made


@pytest.mark.usefixtures("places")
def test_a_run_that_waits_for_a_cluster_has_no_place_here(waiting: list[Run], home: Path) -> None:
    storage.write(waiting[0].folder / "cluster", "ray://there:10001?GPU=1\n")
    assert waiting[0].cluster == "ray://there:10001?GPU=1"
    assert queue.waiting() == waiting[1:]
    assert queue.position(waiting[1]) == 1
    status = str(run_view.draw(RunWatcher(), NAMES[0])["panel"]["parts"]["status"])
    assert "waiting for a node of ray://there:10001" in status
    assert "GPU" not in status
    for act in (lambda: queue.move(waiting[0], 1), lambda: queue.hold(waiting[0])):
        with pytest.raises(UserError, match="does not wait for the device"):
            act()
    (waiting[0].folder / "ask" / "start").unlink()
    assert archive.again(waiting[0]).cluster == waiting[0].cluster
    assert runs.create(waiting[0].config()).cluster == ""


def test_runs_that_began_within_a_minute_are_told_apart(home: Path) -> None:
    for second in (1, 2):
        named(f"2026-11-24_14050{second}_rin")
    named("2026-11-24_140600_rin")
    labels = [label for label, _run in run_view.draw(RunWatcher(), None)["picker"].choices]
    assert labels == ["rin, 24 Nov 14:06", "rin, 24 Nov 14:05:02", "rin, 24 Nov 14:05:01"]


def test_the_first_cannot_go_up_nor_the_last_down(waiting: list[Run]) -> None:
    rows = queue_list.draw(waiting).split("<li")[1:]
    off = [re.findall(r'aria-label="([^"]+)" disabled', row) for row in rows]
    assert off == [["Move rin, 24 Nov 14:05 up"], [], ["Move cat, 24 Nov 14:05 down"]]
    assert queue_list.draw([]) == ""
    waiting[0].config_file.write_text("broken")
    assert queue_list.draw(waiting).count('data-run="') == 3
