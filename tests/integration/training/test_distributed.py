"""Several processes on one run: the adapter of one, and nobody left behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import CHECKOUT, HANG, wait
from tests.integration.runs.test_processes import processes
from tests.integration.training.test_memory import close, newest
from tests.integration.training.test_train import finished, losses, settings
from tests.workers import Workers
from trainer import runs
from trainer.runs import Run
from trainer.training import ranks


def ended(run: Run) -> bool:
    return runs.look(run).status not in runs.ACTIVE and not processes(run)


OPTIONS: dict[str, Any] = {"training__steps": 8, "training__batch_size": 4, "training__gradient_accumulation": 2}
OPTIONS |= {"training__precision": "fp32", "preservation__share": 0.3, "optimizer__learning_rate": 0.001}
OPTIONS |= {"preview__every": 4, "preview__prompts": ("rin", "rin, red", "red"), "checkpoint__every": 2}


@pytest.fixture
def alone(character: Path, tiny_sd: Path) -> Run:
    return finished(tiny_sd, **OPTIONS)


@pytest.mark.slow
def test_two_processes_stop_and_make_the_adapter_of_one(
    alone: Run, tiny_sd: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait(lambda: len(processes(run)) == 2)
    runs.pause(run)  # so that it does not end before it is stopped
    wait(lambda: runs.look(run).state.step > 0)
    runs.request(run, "stop")
    wait(lambda: ended(run))
    assert (runs.look(run).status, runs.look(run).state.step < 8) == ("stopped", True)
    runs.pause(run, go_on=True)
    assert workers.work(run) == 0, runs.log_tail(run)
    state = runs.look(run).state
    assert runs.look(run).status == "finished", runs.log_tail(run)
    assert "OMP_NUM_THREADS" not in runs.log_tail(run), "each has its part of the cores, and no library remarks on it"
    assert "kernels" not in runs.log_tail(run)
    assert close(newest(run), newest(alone))
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    drawn, expected = ({each.file: each.prompt for each in runs.look(done).state.previews} for done in (run, alone))
    assert drawn == expected
    assert len(state.previews) == len(drawn) == 6, "each of them draws a part"
    for file in drawn:
        mine, theirs = (np.asarray(Image.open(each.folder / file), dtype=np.float32) for each in (run, alone))
        assert np.abs(mine - theirs).mean() < 2


DEAD_EARLY = """
import multiprocessing, os, sys, threading
from pathlib import Path
from trainer.training import ranks
from trainer.runs import Run
ranks.NOTICED_WITHIN = 0.1
process = multiprocessing.get_context("fork").Process(target=os._exit, args=(1,))
process.start()
process.join()
ranks._watch(Run(Path(sys.argv[1])), [process], threading.Event())
print("not noticed")
"""


@pytest.mark.slow
def test_a_process_that_ended_early_is_noticed(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2))
    command = [sys.executable, "-c", DEAD_EARLY, str(run.folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert runs.look(run).state.message.startswith("Another process of this run has ended")


def test_processes_that_nobody_asked_for(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small base takes the cores that it may use, four pictures of a batch each; what is set or on record is kept."""

    def wanted(base: Path | str = tiny_sd, **options: Any) -> int:  # noqa: ANN401 - settings
        return ranks.wanted(settings(Path(base), **options))

    allowed = os.sched_getaffinity(0)
    assert (wanted(training__batch_size=8), wanted(training__batch_size=7)) == (min(len(allowed), 2), 1)
    assert wanted(training__batch_size=8, training__devices=3) == 3
    assert wanted(training__batch_size=8, record__devices=4) == 4
    assert wanted(training__batch_size=8, record__devices=4, training__devices=1) == 1
    assert wanted("someone/model", training__batch_size=8) == 1, "nothing is fetched to find that out"
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert wanted(training__batch_size=8) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.setattr(ranks, "MEMORY_EACH", psutil.virtual_memory().available * 2)
    assert wanted(training__batch_size=8) == 1
