"""Several processes on one run: the adapter of one, and nobody left behind."""

import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.conftest import CHECKOUT
from tests.integration.runs.test_processes import processes, wait_until
from tests.integration.training.test_memory import close, newest
from tests.integration.training.test_train import finish, losses, quiet, same, settings
from trainer import families, paths, runs
from trainer.config import ModelConfig
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError
from trainer.training import checkpoint, encode, ranks


def ended(run: Run) -> bool:
    return runs.look(run).status not in runs.ACTIVE and not processes(run)


OPTIONS: dict[str, Any] = {
    "training__steps": 8, "training__batch_size": 4, "training__gradient_accumulation": 2, "preservation__share": 0.3,
    "optimizer__learning_rate": 0.001,
    "preview__every": 4, "preview__prompts": ("rin", "rin, red", "red"), "checkpoint__every": 2,
    "training__precision": "fp32",
}  # fmt: skip


@pytest.fixture
def alone(character: Path, tiny_sd: Path) -> Run:
    """The run of one process."""
    run = runs.create(settings(tiny_sd, **OPTIONS))
    finish(run)
    return run


def test_two_processes_make_the_adapter_of_one(alone: Run, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: len(processes(run)) == 2, 60)
    wait_until(lambda: ended(run), 120)
    state = runs.look(run).state
    assert runs.look(run).status == "finished", runs.log_tail(run)
    assert "OMP_NUM_THREADS" not in runs.log_tail(run), "each has its part of the cores, and no library remarks on it"
    assert "kernels" not in runs.log_tail(run)
    assert close(newest(run), newest(alone))
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    drawn = {one.file: one.prompt for one in state.previews}
    assert drawn == {one.file: one.prompt for one in runs.look(alone).state.previews}
    assert len(state.previews) == len(drawn) == 6, "each of them draws a part"
    for file in drawn:
        mine, theirs = (np.asarray(Image.open(one.folder / file), dtype=np.float32) for one in (run, alone))
        assert np.abs(mine - theirs).mean() < 2


@pytest.mark.nightly
def test_a_preview_that_only_one_process_cannot_write_is_a_note_and_no_more(alone: Run, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    (run.folder / "previews" / "000004_2.png").mkdir(parents=True)  # in the way of the other process
    runs.start(run)
    wait_until(lambda: ended(run), 120)
    state = runs.look(run).state
    assert runs.look(run).status == "finished", runs.log_tail(run)
    assert state.warnings.count("The previews of step 4 could not be generated; the log says why.") == 1
    assert {one.file for one in state.previews} == {
        *(f"previews/000004_{number}.png" for number in (0, 1)),
        *(f"previews/000008_{number}.png" for number in (0, 1, 2)),
    }
    assert "IsADirectoryError" in runs.log_tail(run)
    assert close(newest(run), newest(alone))


@pytest.mark.nightly
def test_two_processes_with_parts_and_uneven_shares(character: Path, tiny_sd: Path) -> None:
    options = OPTIONS | {"training__batch_size": 5, "training__gradient_accumulation": 1, "training__steps": 4}
    one, two = (
        runs.create(settings(tiny_sd, training__devices=devices, training__micro_batches=parts, **options))
        for devices, parts in ((1, 1), (2, 2))
    )
    finish(one)
    runs.start(two)
    wait_until(lambda: ended(two), 120)
    assert close(newest(two), newest(one))


@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_two_processes_resume_after_one_was_killed(alone: Run, tiny_sd: Path, victim: str) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: bool(checkpoint.folders(run)), 120)
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


@pytest.mark.slow
def test_two_processes_are_stopped_as_one(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **(OPTIONS | {"training__steps": 4000})))
    runs.start(run)
    wait_until(lambda: runs.look(run).state.step > 2, 120)
    runs.request(run, "stop")
    wait_until(lambda: ended(run), 60)
    assert runs.look(run).status == "stopped"


@pytest.mark.nightly
def test_a_process_that_ends_before_it_has_joined_the_others(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: len(processes(run)) == 2, 60)
    os.kill(processes(run)[1], signal.SIGKILL)
    wait_until(lambda: ended(run), 60)
    assert runs.look(run).status == "failed"
    assert runs.look(run).state.message.startswith("Another process of this run has ended")


DONE_EARLY = """
import sys, time
from pathlib import Path
from trainer.training import ranks
from trainer.runs import Run
ranks.NOTICED_WITHIN = 0.1
with ranks.followers(Run(Path(sys.argv[1])), 2, lambda _: None):
    time.sleep(2)
print("to the end")
"""


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


def test_a_process_that_has_ended_before_it_is_watched_is_noticed(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__devices=2))
    command = [sys.executable, "-c", DEAD_EARLY, str(run.folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert runs.look(run).state.message.startswith("Another process of this run has ended")


@pytest.mark.slow
def test_a_process_that_is_done_leaves_the_leader_at_work(character: Path, tiny_sd: Path) -> None:
    """The leader draws and writes for as long as it takes, after the last step of all."""
    run = runs.create(settings(tiny_sd))
    command = [sys.executable, "-c", DONE_EARLY, str(run.folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "to the end\n"), done.stderr
    assert not runs.look(run).state.end


@pytest.mark.nightly
def test_a_picture_that_is_damaged_is_left_out_and_named_by_the_leader(character: Path, tiny_sd: Path) -> None:
    """The other process comes to it first, as it begins in the middle."""
    broken = sorted(character.glob("*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:300])
    run = runs.create(settings(tiny_sd, training__devices=2, **OPTIONS))
    runs.start(run)
    wait_until(lambda: ended(run), 60)
    assert runs.look(run).status == "finished"
    assert any(broken.name in warning for warning in runs.look(run).state.warnings)


@pytest.mark.slow
def test_processes_that_nobody_asked_for(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small base takes the cores that it may use, four pictures of a batch each; what is set or on record is kept."""

    def wanted(base: Path | str = tiny_sd, **options: Any) -> int:  # noqa: ANN401 - settings
        return ranks.wanted(settings(Path(base), **options))

    allowed = os.sched_getaffinity(0)
    assert wanted(training__batch_size=8) == min(len(allowed), 2)
    assert wanted(training__batch_size=7) == 1
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


@pytest.mark.nightly
def test_a_run_that_takes_the_cores_by_itself_goes_on_bit_for_bit(character: Path, tiny_sd: Path) -> None:
    options = OPTIONS | {"training__batch_size": 8, "training__gradient_accumulation": 1, "training__steps": 40}
    one, whole, stopped = (runs.create(settings(tiny_sd, training__devices=n, **options)) for n in (1, 0, 0))
    finish(one)
    runs.start(whole)
    runs.start(stopped)
    wait_until(lambda: runs.look(stopped).state.step > 2, 120)
    runs.request(stopped, "stop")
    wait_until(lambda: ended(stopped), 60)
    assert runs.look(stopped).status == "stopped"
    runs.start(stopped)
    wait_until(lambda: ended(whole) and ended(stopped), 120)
    assert whole.config().training.devices == 0
    assert whole.config().record.devices == min(2, len(os.sched_getaffinity(0)))
    assert close(newest(whole), newest(one))
    assert same(newest(stopped), newest(whole))


def test_what_is_done_once_for_all_is_shared(character: Path, tiny_sd: Path) -> None:
    """Each process begins at a place of its own, finds what others have done, and ends with the same."""
    options = {"preservation__share": 0.5, "preservation__prompts": ["a cat", "a dog"], "training__text_encoder": True}
    config, examples = settings(tiny_sd, **options), dataset.read(character, "rin")
    family = families.read(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    kept = character / paths.CACHE

    def until(phase: str, count: int, share: Fraction) -> set[str]:
        """Files after so many pictures of a phase."""
        seen = []

        def listen(name: str, *_: int) -> None:
            seen.append(name)
            if seen.count(phase) > count:
                raise StopRequestedError

        with pytest.raises(StopRequestedError):
            encode.build(family, examples, config, listen, share)
        return {file.name for file in kept.iterdir()}

    first = until("Encoding images", 1, Fraction(0))
    shutil.rmtree(kept)
    second = until("Encoding images", 1, Fraction(1, 2))
    assert len(first) == len(second) == 1
    assert not first & second
    shutil.rmtree(kept)
    one, two = (encode.build(family, examples, config, quiet, share) for share in (Fraction(0), Fraction(1, 2)))
    assert one.resolutions == two.resolutions
    assert one.preserved == two.preserved


@pytest.mark.nightly
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
    with pytest.raises(UserError, match="devices: too many for a batch of 4"):
        settings(tiny_sd, training__devices=5)


@pytest.mark.nightly
@pytest.mark.parametrize("devices", [2, 0])
def test_two_spawned_processes_make_the_adapter_of_one(
    character: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    """As on Windows, on macOS and with a GPU, where nothing is forked."""
    options = OPTIONS | {"training__batch_size": 8, "training__gradient_accumulation": 1, "training__steps": 4}
    one, two = (runs.create(settings(tiny_sd, training__devices=number, **options)) for number in (1, devices))
    finish(one)
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", "spawn@1")
    runs.start(two)
    wait_until(lambda: ended(two), 120)
    assert runs.look(two).status == "finished", runs.log_tail(two)
    assert "Traceback" not in runs.log_tail(two)
    assert "kernels" not in runs.log_tail(two)
    assert runs.look(two).state.warnings == runs.look(one).state.warnings
    assert two.config().record.devices == 2
    assert close(newest(two), newest(one))


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["lost@1", "spawn@1,lost@1", "late@1,patience@3"])
def test_processes_that_nobody_asked_for_and_cannot_be_had(
    character: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    options = OPTIONS | {"training__batch_size": 8, "training__gradient_accumulation": 1, "training__steps": 4}
    quiet, alone, asked = (runs.create(settings(tiny_sd, training__devices=n, **options)) for n in (1, 0, 2))
    finish(quiet)
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", fault)
    runs.start(alone)
    wait_until(lambda: ended(alone), 120)
    assert runs.look(alone).status == "finished", runs.log_tail(alone)
    assert "No other process could be started" in runs.look(alone).state.warnings[0]
    assert alone.config().record.devices == 1
    assert close(newest(alone), newest(quiet))
    runs.start(asked)
    wait_until(lambda: ended(asked), 120)
    assert runs.look(asked).status == "failed"
    assert runs.look(asked).state.message.startswith("Another process of this run has ended")
