"""The worker that waits for a run, behind the page."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import python, unmeasured, wait
from tests.integration.runs.test_processes import make
from trainer import runs
from trainer.runs import control
from ui.state import warm_worker
from ui.tabs import train


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    warm_worker.close()


@pytest.fixture
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker start in half the time; one test here measures its coverage."""
    for name in os.environ.keys() - unmeasured():
        monkeypatch.delenv(name)


def waiting() -> subprocess.Popen[str]:
    assert warm_worker._waiting
    return warm_worker._waiting


@pytest.mark.slow
def test_a_run_has_the_worker_that_waits(character: Path, tiny_sd: Path) -> None:
    """Or one that starts then, if the one that waited was killed, as by a system that is short of memory.

    It is handed over once, though no note can be written: a second worker would begin again once the run was stopped.
    """
    run, other = (make(str(tiny_sd), steps=2, resolution=64) for _ in range(2))
    warm_worker.prepare()
    waiting().kill()
    waiting().wait()
    warm_worker.start(other)
    wait(lambda: runs.look(other).state.pid)
    control.kill(other)
    warm_worker.prepare()
    process = waiting()
    warm_worker.prepare()
    assert waiting() is process
    (run.folder / "ask" / "process").mkdir(parents=True)
    part = run.folder / "ask" / ".stop.1.part"  # of a request that another process is writing
    part.touch()
    warm_worker._hand_over(run)
    assert warm_worker._waiting is None
    warm_worker.close()  # the page ends: what has a run goes on
    wait(lambda: runs.look(run).state.pid)
    (run.folder / "ask" / "process").rmdir()  # as the worker does with a note when it ends
    wait(lambda: runs.look(run).status == "finished")
    assert runs.look(run).state.pid == process.pid
    assert part.exists()
    assert len(set(re.findall(r'"kind":"began","pid":(\d+)', run.log.read_text()))) == 1
    assert "already running" not in run.worker_log.read_text()
    wait(lambda: process.poll() == 0)


@pytest.mark.slow
@pytest.mark.usefixtures("_unmeasured")
def test_before_the_first_run_it_measures_the_machine(character: Path) -> None:
    warm_worker.wait_until_measured()  # by nobody, so that nothing is waited for
    assert "after the first steps" in train.plan_images("rin")["summary"]
    warm_worker.prepare()
    assert "is being estimated" in train.plan_images("rin")["summary"]
    warm_worker.wait_until_measured()
    assert re.search("On this processor the steps take .+, as computed", train.plan_images("rin")["summary"])


@pytest.mark.slow
@pytest.mark.usefixtures("_unmeasured")
def test_it_ends_with_the_page_however_that_ends(home: Path) -> None:
    code = "import os; from ui.state import warm_worker as w; w.prepare(); print(w._waiting.pid, flush=True); "
    code += "os._exit(9)"
    page = python("-c", code)
    assert page.returncode == 9
    wait(lambda: not psutil.pid_exists(int(page.stdout)))


def test_it_ends_after_a_while(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_worker, "IDLE", 0.2)
    warm_worker.prepare()
    process = waiting()
    wait(lambda: process.poll() is not None)
    assert warm_worker._waiting is None
