"""Faults made real in real workers: what is lost, what is said, and that the run then goes on as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import faults
from tests.conftest import CHECKOUT, HANG, small_disk, unmeasured, wait
from tests.integration.runs.test_processes import limner, make, status
from tests.integration.training.test_train import same
from tests.workers import Workers
from trainer import runs, storage, worker
from trainer.adapter_files import reader
from trainer.runs import Run, control, events
from trainer.training import checkpoint
from ui.state import run_actions
from ui.widgets import run_html

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("character")]


def plain(base: Path) -> Run:
    run = make(str(base), steps=16, resolution=64)
    preview = run.config().preview.model_copy(update={"every": 1000, "at_start": False})
    run.save_config(run.config().model_copy(update={"preview": preview}))
    return run


def message(run: Run) -> str:
    """What the page says of a run, with no trace of the inside in it."""
    view = runs.look(run)
    text = run_html.status(view) + run_html.warnings(view.state)
    assert "Traceback" not in text
    assert str(run.folder.parent) not in text
    return text


def whole(run: Run) -> list[int]:
    """Steps of the checkpoints, all of which must be whole, with nothing half-written beside them."""
    assert all(checkpoint.is_intact(folder) for folder in checkpoint.folders(run))
    assert not list(run.folder.rglob("*.part"))
    return [int(folder.name) for folder in checkpoint.folders(run)]


class Undisturbed:
    """The run below without any fault, made once."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._adapter: dict[str, Any] = {}
        self._losses: dict[int, float] = {}

    def is_what_becomes_of(self, run: Run) -> None:
        """Resumed, the run ends with the adapter and the losses of one that nothing happened to."""
        assert self._workers.work(run) == 0
        self.is_what_became_of(run)

    def is_what_became_of(self, run: Run) -> None:
        """The finished run has the adapter and the losses of one that nothing happened to, and no litter."""
        if not self._adapter:
            other = plain(Path(run.config().model.base))
            assert self._workers.work(other) == 0
            self._adapter, self._losses = load_file(other.export), runs.look(other).state.losses
        assert same(load_file(run.export), self._adapter)
        assert runs.look(run).state.losses == self._losses
        files = {path.name for path in run.folder.iterdir()} - {"worker.log"}
        names = "ask checkpoints config.toml events.jsonl previews rin.safetensors worker.lock"
        assert files == set(names.split())
        assert not list((run.folder / "ask").iterdir())


@pytest.fixture(scope="module")
def undisturbed(workers: Workers) -> Undisturbed:
    return Undisturbed(workers)


def test_a_loss_that_is_not_a_number_ends_the_run(tiny_sd: Path, workers: Workers, undisturbed: Undisturbed) -> None:
    """Its checkpoints are whole and resumed from by their steps, whatever their dates, unless of another version."""
    run = plain(tiny_sd)
    assert workers.work(run, "nan@12") == 2
    assert "The training became unstable after step 11" in message(run)
    assert "Lower the learning rate" in message(run)
    assert whole(run) == [5, 10]
    for folder in checkpoint.folders(run):
        reader.read(folder / checkpoint.ADAPTER)  # refuses what is not finite
    assert not run.export.exists()
    manifests = {path: path.read_text() for path in run.folder.glob(f"checkpoints/*/{checkpoint.MANIFEST}")}
    for path, text in manifests.items():
        manifest = json.loads(text)
        del manifest["groups"], manifest["sha256"][checkpoint.MANIFEST]
        path.write_text(json.dumps(manifest | {"program": "9.9"}))
    assert workers.work(run) == 2
    assert "The checkpoint of step 10 was made by Limner 9.9" in message(run)
    for path, text in manifests.items():
        path.write_text(text)
        os.utime(path.parent, (2_000_000_000 - int(path.parent.name),) * 2)
    undisturbed.is_what_becomes_of(run)
    started = [event.step for event in events.read(run.log)[0] if isinstance(event, events.Started)]
    assert started == [0, 10], "checkpoints are in the order of steps, not of dates"


def test_a_run_goes_on_after_its_device_failed(tiny_sd: Path, workers: Workers, undisturbed: Undisturbed) -> None:
    run = plain(tiny_sd)
    assert workers.work(run, "fault@9") == 1
    assert status(run) in ("starting", "waiting", "running")
    wait(lambda: status(run) == "finished")
    assert "The device failed; the run goes on in a new process." in message(run)
    assert len({event.pid for event in events.read(run.log)[0] if isinstance(event, events.Began)}) == 2
    wait(lambda: not runs.is_locked(run.lock))
    undisturbed.is_what_became_of(run)


def test_a_device_that_fails_twice_at_a_step_ends_it(tiny_sd: Path, workers: Workers) -> None:
    run = plain(tiny_sd)
    (run.folder / "ask" / worker.RETRIED).write_text("8")
    assert workers.work(run, "fault@9") == 1
    assert status(run) == "failed"
    assert "Something unexpected went wrong" in message(run)
    assert not (run.folder / "ask" / worker.RETRIED).exists(), "the next start begins anew"


def test_a_worker_that_hangs_is_said_and_can_be_ended(
    tiny_sd: Path, workers: Workers, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plain(tiny_sd)
    runs.start(run, lambda run: control.note_process(run, workers.start(run, "hang@7")))
    wait(lambda: runs.look(run).state.step == 6)
    assert "Training" in message(run)
    monkeypatch.setattr(runs.view, "SILENCE", 1.0)  # so that the test need not wait for a minute
    wait(lambda: runs.look(run).is_silent(time.time()))
    assert "The run is not responding" in message(run)
    run_actions.ask(run.id, "stop")
    assert (workers.wait() < 0, status(run)) == (True, "interrupted")
    assert "Resume</b> continues from step 5" in message(run)
    undisturbed.is_what_becomes_of(run)


@pytest.mark.nightly
def test_a_second_interrupt_ends_a_command_that_hangs(tiny_sd: Path) -> None:
    run = plain(tiny_sd)
    command = [sys.executable, "-m", "trainer", "resume", run.folder]
    env = unmeasured() | faults.environment("stuck@2")
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, env=env) as typed:
        try:
            wait(lambda: bool(runs.look(run).state.phase))
            typed.send_signal(signal.SIGINT)
            wait((run.folder / "ask" / "stop").exists)
            assert typed.poll() is None
            typed.send_signal(signal.SIGINT)
            printed = typed.communicate(timeout=HANG)[1]
        finally:
            typed.kill()
    assert typed.returncode == 130
    assert "again to end it at once" in printed
    assert "Traceback" not in printed
    assert status(run) == "interrupted"
    done = limner("resume", run.folder)
    assert (done.returncode, status(run)) == (0, "finished"), done.stderr


def test_previews_that_cannot_be_made_are_a_note_and_no_more(tiny_sd: Path, workers: Workers) -> None:
    run = make(str(tiny_sd), steps=20, resolution=64)
    (run.folder / "previews").write_text("in the way")
    assert workers.work(run) == 0
    assert "The previews of step 20 could not be generated" in message(run)


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_power_cut_at_any_moment_of_any_write(tiny_sd: Path, workers: Workers, stride: int) -> None:
    """Killed at the n-th moment of its durable writes: all that has its final name is whole."""
    run = make(str(tiny_sd), steps=4, resolution=64)
    settings = run.config()
    often = settings.checkpoint.model_copy(update={"every": 1, "keep": 2})
    preview = settings.preview.model_copy(update={"every": 2})
    run.save_config(settings.model_copy(update={"checkpoint": often, "preview": preview}))
    workers.work(run)  # fills the cache, whose writes are not of interest here
    expected = run.export.read_bytes()[-1000:]
    for count, number in enumerate(range(1, 400, stride), start=1):
        cut = runs.create(run.config().model_copy(update={"record": settings.record}))
        code = workers.work(cut, f"kill@{number}")
        steps = [int(folder.name) for folder in checkpoint.folders(cut)]
        assert all(checkpoint.is_intact(folder) for folder in checkpoint.folders(cut)), number
        done = runs.look(cut).state.step
        assert len(steps) >= min(2, max(0, done - 1)), number  # the older ones go when the newer are whole
        assert max(steps, default=0) >= done - 1, number
        cut.config()
        if cut.export.exists():
            reader.read(cut.export)
        if code == 0:
            break
        if count % 3 == 0:
            assert workers.work(cut) == 0
            assert cut.export.read_bytes()[-1000:] == expected
            assert not list(cut.folder.rglob("*.part"))
    assert code == 0
    assert number > 30


def test_a_small_disk(tiny_sd: Path, tmp_path: Path, workers: Workers, undisturbed: Undisturbed) -> None:
    """A real disk without room: said before the start, or met on the way; with room again the run goes on."""
    with small_disk(tmp_path / "small", "6m") as disk:
        # It keeps more than it will ever make, which needs no room.
        config = plain(tiny_sd).config()
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1000})})
        run = runs.create(config, disk / "run")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(storage.free_space(disk) - 300_000))
        assert workers.work(run) == 2
        assert "the checkpoints of this run need about" in message(run)
        ballast.unlink()
        workers.start(run)
        wait(lambda: bool(runs.look(run).state.checkpoints))
        ballast.write_bytes(bytes(max(0, storage.free_space(disk) - 8192)))
        code = workers.wait()
        whole(run)
        ballast.unlink()
        assert code == 0 or status(run) == "interrupted" or "The disk is full" in message(run)
        undisturbed.is_what_becomes_of(run)


def test_images_that_cannot_be_read_are_left_out_and_named(character: Path, tiny_sd: Path, workers: Workers) -> None:
    """One is cut off and twelve are not images; without the last good one, and without any, a start is refused."""
    (character / "01.png").write_bytes((character / "01.png").read_bytes()[:3000])
    for picture in sorted(character.glob("*.png"))[1:-1]:
        picture.write_bytes(b"not an image")
    run = plain(tiny_sd)
    assert workers.work(run) == 0
    assert "13 files cannot be read as an image. Such files are not trained." in message(run)
    assert "(01.png, 02.png" in message(run)
    (character / "14.png").unlink()
    run = plain(tiny_sd)
    assert workers.work(run) == 2
    assert "None of the images can be decoded." in message(run)
    (character / "01.png").write_bytes(b"not an image")
    run = plain(tiny_sd)
    assert workers.work(run) == 2
    assert "There are no images in the dataset" in message(run)
