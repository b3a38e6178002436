"""The worker that waits for a run: real processes, which import all that a worker imports."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import CHECKOUT
from trainer import config, runs
from trainer.runs import Run, control
from ui.state import warm_worker


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    warm_worker.close()


def wait_until(what: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def make() -> Run:
    settings: dict[str, object] = {"name": "rin", "dataset": "rin", "model": {"base": "micro"}}
    settings |= {"preview": {"every": 0, "steps": 1}, "preservation": {"share": 0}}
    return runs.create(config.build(settings | {"training": {"steps": 2, "batch_size": 1}}))


def waiting() -> subprocess.Popen[str]:
    assert warm_worker._waiting
    return warm_worker._waiting


@pytest.mark.slow
def test_a_run_has_the_worker_that_waits(character: Path) -> None:
    """Or one that starts then, if the one that waited was killed, as by a system that is short of memory."""
    run, other = make(), make()
    warm_worker.prepare()
    waiting().kill()
    waiting().wait()
    warm_worker.start(other)
    wait_until(lambda: runs.look(other).state.pid)
    control.kill(other)
    warm_worker.prepare()
    process = waiting()
    warm_worker.prepare()
    assert waiting() is process
    warm_worker.start(run)
    assert warm_worker._waiting is None
    warm_worker.close()  # the page ends: what has a run goes on
    wait_until(lambda: runs.look(run).status == "finished")
    assert runs.look(run).state.pid == process.pid
    wait_until(lambda: process.poll() == 0)


@pytest.mark.slow
def test_it_ends_with_the_page_however_that_ends(home: Path) -> None:
    code = (
        "from ui.state import warm_worker as w; w.prepare(); print(w._waiting.pid, flush=True); import os; os._exit(9)"
    )
    page = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert page.returncode == 9
    wait_until(lambda: not psutil.pid_exists(int(page.stdout)))


def test_it_ends_when_nothing_is_started_for_a_while(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_worker, "IDLE", 0.2)
    warm_worker.prepare()
    process = waiting()
    wait_until(lambda: process.poll() is not None)
    assert warm_worker._waiting is None


def test_there_is_none_for_each_of_several_people(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LIMNER_SHARED", str(home))
    warm_worker.prepare()
    assert warm_worker._waiting is None
