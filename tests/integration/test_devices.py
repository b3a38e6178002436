"""Several processes on one run: the adapter of one, and nobody left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHECKOUT
from tests.integration.test_engine import finish, losses, settings
from tests.integration.test_memory import close, newest
from tests.integration.test_processes import processes, wait_until
from trainer import checkpoint, runs
from trainer.errors import UserError
from trainer.runs import Run


def ended(run: Run) -> bool:
    return runs.look(run).status not in runs.ACTIVE and not processes(run)


OPTIONS: dict[str, Any] = {
    "training__steps": 8, "training__batch_size": 4, "training__accumulation": 2, "preservation__share": 0.3,
    "optimizer__learning_rate": 0.001,
    "preview__every": 4, "checkpoint__every": 2, "training__precision": "fp32",
}  # fmt: skip


@pytest.fixture
def alone(character: Path, tiny_sd: Path) -> Run:
    """The run of one process."""
    run = runs.create(settings(tiny_sd, **OPTIONS))
    finish(run)
    return run


def test_two_processes_make_the_adapter_of_one(alone: Run, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: len(processes(run)) == 2, 60)
    wait_until(lambda: ended(run), 120)
    state = runs.look(run).state
    assert runs.look(run).status == "finished", runs.log_tail(run)
    assert close(newest(run), newest(alone))
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    assert len(state.previews) == len(runs.look(alone).state.previews), "only one of them draws"


def test_two_processes_with_parts_and_uneven_shares(character: Path, tiny_sd: Path) -> None:
    options = OPTIONS | {"training__batch_size": 5, "training__accumulation": 1, "training__steps": 4}
    one, two = (
        runs.create(settings(tiny_sd, training__devices=devices, training__parts=parts, **options))
        for devices, parts in ((1, 1), (2, 2))
    )
    finish(one)
    runs.start(two)
    wait_until(lambda: ended(two), 120)
    assert close(newest(two), newest(one))


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_two_processes_resume_after_one_was_killed(alone: Run, tiny_sd: Path, victim: str) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: bool(checkpoint.found(run)), 120)
    both = processes(run)
    assert len(both) == 2
    os.kill(both[0] if victim == "leader" else both[1], signal.SIGKILL)
    wait_until(lambda: ended(run), 60)
    seen = runs.look(run)
    if victim == "leader":
        assert seen.status == "interrupted"
    else:
        assert seen.status == "failed"
        assert seen.state.message.startswith("Another process of this run has ended")
    runs.start(run)
    wait_until(lambda: ended(run), 120)
    assert runs.look(run).status == "finished", runs.log_tail(run)
    assert close(newest(run), newest(alone))


def test_two_processes_are_stopped_as_one(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **(OPTIONS | {"training__steps": 4000})))
    runs.start(run)
    wait_until(lambda: runs.look(run).state.step > 2, 120)
    runs.ask(run, "stop")
    wait_until(lambda: ended(run), 60)
    assert runs.look(run).status == "stopped"


def test_a_launcher_may_start_the_processes(alone: Run, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, **OPTIONS))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "trainer", "work", str(run.folder)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:6000]
    assert runs.look(run).status == "finished"
    assert close(newest(run), newest(alone))


def test_a_batch_cannot_be_shared_by_more_devices_than_it_has_pictures(tiny_sd: Path) -> None:
    with pytest.raises(UserError, match="devices: a batch of 4 cannot be shared by so many"):
        settings(tiny_sd, training__devices=5)
