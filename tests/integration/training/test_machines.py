"""A run over two machines: processes that a launcher began on each, with nothing shared but a network."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHECKOUT
from tests.integration.runs.test_processes import wait_until
from tests.integration.training.test_distributed import OPTIONS
from tests.integration.training.test_memory import newest
from tests.integration.training.test_train import losses, same, settings
from trainer import runs
from trainer.runs import Run
from trainer.training import checkpoint

pytestmark = pytest.mark.nightly

LONG = OPTIONS | {"training__steps": 40, "preview__every": 0, "preview__prompts": ["rin"]}


def elsewhere(run: Run, home: Path) -> Run:
    """The run on a second machine, which has its settings and nothing else."""
    folder = home / "second" / run.id
    folder.mkdir(parents=True)
    shutil.copy(run.config_file, folder)
    return Run(folder)


@contextmanager
def begun(*machines: Run, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """A process on each machine, the first of which leads, as `accelerate launch` and `torchrun` begin them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank, run in enumerate(machines):
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(machines)), "LOCAL_WORLD_SIZE": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "trainer", "work", str(run.folder)], cwd=CHECKOUT, text=True,
            env={**os.environ, **place, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ))  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ends(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The exit codes."""
    wait_until(lambda: all(process.poll() is not None for process in processes), 240)
    return [process.returncode for process in processes]


def test_a_run_over_two_machines_is_resumed(character: Path, home: Path, tiny_sd: Path) -> None:
    """The checkpoint, and what the leader settled when it began, are on one of them alone."""
    whole, stopped = (runs.create(settings(tiny_sd, **LONG)) for _ in range(2))
    with begun(whole, elsewhere(whole, home)) as both:
        assert ends(both) == [0, 0]
    second = elsewhere(stopped, home)
    with begun(stopped, second) as both:
        wait_until(lambda: runs.look(stopped).state.step > 2, 180)
        runs.request(stopped, "stop")
        assert ends(both) == [0, 0]
    assert runs.look(stopped).status == "stopped"
    assert 2 < runs.look(stopped).state.step < 40
    assert not checkpoint.folders(second)
    with begun(stopped, second) as both:
        assert ends(both) == [0, 0]
    assert runs.look(stopped).status == "finished"
    assert same(newest(stopped), newest(whole))
    assert losses(stopped) == losses(whole)


def test_machines_with_other_pictures_are_refused(character: Path, home: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, **LONG))
    second = elsewhere(run, home)
    shutil.copytree(character, home / "others")
    (home / "others" / "01.txt").write_text("something else")
    config = second.config()
    second.save_config(config.model_copy(update={"dataset": str(home / "others")}))
    with begun(run, second) as both:
        assert ends(both) == [2, 2]
    assert runs.look(run).state.message.startswith("The machines of this run do not have the same")


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_does_not_answer_in_a_step_is_said(
    character: Path, home: Path, tiny_sd: Path, silent: int
) -> None:
    run = runs.create(settings(tiny_sd, **(LONG | {"training__steps": 100_000})))
    environment: dict[str, Any] = {"LIMNER_TEST": "1", "LIMNER_FAULT": "patience@20"}
    with begun(run, elsewhere(run, home), **environment) as both:
        wait_until(lambda: runs.look(run).state.step > 2, 180)
        both[silent].send_signal(signal.SIGSTOP)
        other = both[1 - silent]
        assert ends([other]) == [2]
        assert other.stderr is not None
        assert "did not answer for" in (runs.look(run).state.message if silent else other.stderr.read())
