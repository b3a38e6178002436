"""Real workers on a machine that pretends to have two cards."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.runs.test_processes import make, status, wait_until
from tests.workers import Workers
from trainer import runs
from trainer.runs import Run, queue

TWO_CARDS = "cards@2"


def training(run: Run) -> bool:
    """Tell whether a run has done a step, after which it is paused, so that it takes no time of the machine."""
    if runs.look(run).state.step == 0:
        return False
    runs.pause(run)
    return True


@pytest.mark.slow
def test_two_runs_train_at_once_and_a_kill_frees_a_card(
    character: Path, tiny_sd: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", TWO_CARDS)
    first, second = (make(str(tiny_sd), steps=100_000, resolution=64) for _ in range(2))
    third, fourth = (make(str(tiny_sd), steps=2, resolution=64) for _ in range(2))
    numbers: dict[Run, int] = {}

    def start(run: Run) -> None:
        runs.start(run, executor=lambda run: numbers.update({run: workers.start(run, TWO_CARDS)}))

    for run in (first, second):
        start(run)
        wait_until(lambda run=run: training(run))
    assert [runs.look(run).state.cards for run in (first, second)] == [("0",), ("1",)]
    for run in (third, fourth):
        start(run)
        wait_until(lambda run=run: runs.is_locked(run.lock))
    assert queue.line() == [third, fourth]
    queue.move(fourth, 1)
    os.kill(numbers[second], signal.SIGKILL)
    for run in (fourth, third):
        assert (workers.wait(numbers[run]), runs.look(run).state.cards) == (0, ("1",))
    ended, later = (runs.look(run).state.updated for run in (fourth, third))
    assert ended < later, "they were put in this order by hand"
    assert status(second) == "interrupted"
    runs.request(first, "stop")
    assert (workers.wait(numbers[first]), status(first)) == (0, "stopped")
    assert workers.wait(numbers[second]) == -signal.SIGKILL
