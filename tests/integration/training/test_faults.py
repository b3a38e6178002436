"""Faults made real in real workers: what is lost, what is said, and that the run then goes on as if nothing was."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from benchmarks import crash
from tests.conftest import CHECKOUT, small_disk
from tests.hostile import pictures
from tests.integration.runs.test_processes import limner, make, processes, status, wait_until
from tests.workers import Workers
from trainer import config, paths, runs, storage, worker
from trainer.adapter_files import reader, writer
from trainer.data import dataset, images
from trainer.data.captions import caption_file
from trainer.runs import Run, events
from trainer.training import checkpoint, export
from ui.state import run_actions
from ui.state.run_watcher import RunWatcher
from ui.widgets import run_html


def plain(base: Path) -> Run:
    run = make(str(base), steps=16, resolution=64)
    preview = run.config().preview.model_copy(update={"every": 1000, "at_start": False})
    run.save_config(run.config().model_copy(update={"preview": preview}))
    return run


def told(run: Run) -> str:
    """What the page says of a run, with no trace of the inside in it."""
    view = runs.look(run)
    said = run_html.status(view) + run_html.warnings(view.state)
    assert "Traceback" not in said
    assert str(run.folder.parent) not in said
    return said


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
        """The finished run has the adapter and the losses of one that nothing happened to."""
        if not self._adapter:
            other = plain(Path(run.config().model.base))
            assert self._workers.work(other) == 0
            self._adapter, self._losses = load_file(other.export), runs.look(other).state.losses
        found = load_file(run.export)
        assert found.keys() == self._adapter.keys()
        assert all((found[key] == self._adapter[key]).all() for key in found)
        assert runs.look(run).state.losses == self._losses
        assert_no_litter(run)


@pytest.fixture(scope="module")
def undisturbed(workers: Workers) -> Undisturbed:
    return Undisturbed(workers)


def assert_no_litter(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir() if path.name != "worker.log") == [
        "ask", "checkpoints", "config.toml", "events.jsonl", "previews", "rin.safetensors", "worker.lock",
    ]  # fmt: skip
    assert not list((run.folder / "ask").iterdir())


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_learned(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed
) -> None:
    run = plain(tiny_sd)
    assert workers.work(run, "nan@12") == 2
    assert "The training became unstable after step 11" in told(run)
    assert "Lower the learning rate" in told(run)
    assert whole(run) == [5, 10]
    for folder in checkpoint.folders(run):
        reader.read(folder / checkpoint.ADAPTER)  # refuses what is not finite
    assert not run.export.exists()
    undisturbed.is_what_becomes_of(run)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_in_words_and_keeps_the_last_checkpoint(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed
) -> None:
    assert workers.work(plain(tiny_sd)) == 0  # caches the pictures, which takes many writes
    run = plain(tiny_sd)
    assert workers.work(run, "enospc@7") == 1  # after twice the settings and three files of the first checkpoint
    assert "The disk is full.</b> Free some space, then resume" in told(run)
    assert whole(run) == [5]
    undisturbed.is_what_becomes_of(run)


@pytest.mark.slow
def test_a_log_on_a_full_disk_ends_the_run_and_leaves_it_resumable(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed
) -> None:
    run = plain(tiny_sd)
    run.log.symlink_to("/dev/full")
    assert workers.work(run) == 1
    assert "No space left" in runs.log_tail(run)
    run.log.unlink()
    assert status(run) == "interrupted"
    undisturbed.is_what_becomes_of(run)


def test_a_damaged_image_is_left_out_and_named(character: Path, tiny_sd: Path, workers: Workers) -> None:
    (character / "01.png").write_bytes((character / "01.png").read_bytes()[:3000])
    done = limner("check", "rin")
    assert "1 file cannot be read as an image." in done.stdout
    assert "01.png" in done.stdout
    run = plain(tiny_sd)
    assert workers.work(run) == 0
    assert "1 file cannot be read as an image. Such files are not trained." in told(run)
    assert "(01.png)" in told(run)
    for image in character.glob("*.png"):
        image.write_bytes(image.read_bytes()[:3000])
    run = plain(tiny_sd)
    assert workers.work(run) == 2
    assert "None of the images can be decoded." in told(run)


@pytest.mark.slow
def test_a_step_without_memory_is_done_with_less(character: Path, tiny_sd: Path, workers: Workers) -> None:
    run = plain(tiny_sd)
    assert workers.work(run, "oom@7") == 0
    assert "Memory ran out; from here on" in told(run)
    assert runs.look(run).state.step == 16


@pytest.mark.slow
def test_a_run_whose_device_fails_goes_on_in_a_new_process(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed
) -> None:
    run = plain(tiny_sd)
    assert workers.work(run, "fault@9") == 1
    assert status(run) in ("starting", "waiting", "running")
    wait_until(lambda: status(run) == "finished")
    assert "The device failed; the run goes on in a new process." in told(run)
    assert len({event.pid for event in events.read(run.log)[0] if isinstance(event, events.Began)}) == 2
    wait_until(lambda: not runs.is_locked(run.lock))
    undisturbed.is_what_became_of(run)


def test_a_device_that_fails_at_the_same_step_again_ends_the_run(
    character: Path, tiny_sd: Path, workers: Workers
) -> None:
    run = plain(tiny_sd)
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / worker.RETRIED).write_text("8")
    assert workers.work(run, "fault@9") == 1
    assert status(run) == "failed"
    assert "Something unexpected went wrong" in told(run)
    assert not (run.folder / "ask" / worker.RETRIED).exists(), "the next start begins anew"


@pytest.mark.slow
def test_a_worker_that_hangs_is_said_and_can_be_ended(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plain(tiny_sd)
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", "hang@7")
    runs.start(run)
    monkeypatch.delenv("LIMNER_FAULT")
    wait_until(lambda: runs.look(run).state.step == 6)
    assert "Training" in told(run)
    monkeypatch.setattr(runs.view, "SILENCE", 1.0)  # so that the test need not wait for a minute
    wait_until(lambda: runs.look(run).is_silent(time.time()))
    assert "The run is not responding" in told(run)
    run_actions.ask(run.id, "stop")
    wait_until(lambda: status(run) not in runs.ACTIVE)
    assert "Resume</b> continues from step 5" in told(run)
    undisturbed.is_what_becomes_of(run)


def words_of_stop(run: Run) -> str:
    """What the button says that ends a run."""
    from ui.tabs import run_view

    names = [name for name, *_ in run_view.BUTTONS]
    return str(run_view.draw(RunWatcher(), run.id)[-len(names) :][names.index("stop")].value)


@pytest.fixture
def nobody_left(home: Path) -> Iterator[None]:
    """Ends the workers that a test leaves behind."""
    yield
    for run in runs.all_runs():
        for number in processes(run):
            os.kill(number, signal.SIGKILL)


@pytest.mark.nightly
@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize(("fault", "devices"), [("stuck@1", 1), ("hang@1", 1), ("hang@2", 2)])
def test_a_worker_that_hangs_before_its_second_step_can_be_ended(
    character: Path, tiny_sd: Path, workers: Workers, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch,
    fault: str, devices: int,
) -> None:  # fmt: skip
    """It is asked first, and ended when it has not answered; whoever waits for the device gets it then."""
    hung, waiting = plain(tiny_sd), plain(tiny_sd)
    training = hung.config().training.model_copy(update={"devices": devices})
    hung.save_config(hung.config().model_copy(update={"training": training}))
    monkeypatch.setenv("LIMNER_TEST", "1")
    monkeypatch.setenv("LIMNER_FAULT", fault)
    runs.start(hung)
    monkeypatch.delenv("LIMNER_FAULT")
    wait_until(lambda: len(processes(hung)) == devices and reached(hung, fault))
    runs.start(waiting)
    assert not runs.look(hung).is_silent(time.time())
    assert runs.look(hung).is_silent(time.time() + 3600)
    assert words_of_stop(hung) == "Stop and save"
    run_actions.ask(hung.id, "stop")
    run_actions.ask(hung.id, "stop")  # by somebody who clicked twice
    wait_until(lambda: runs.is_locked(waiting.lock))
    assert (status(hung) in runs.ACTIVE, status(waiting)) == (True, "waiting")
    monkeypatch.setattr(runs.view, "STOP_TIMEOUT", 0.5, raising=False)  # so that the test need not wait
    wait_until(lambda: words_of_stop(hung) == "End now", 60)
    run_actions.ask(hung.id, "stop")
    wait_until(lambda: status(hung) == "interrupted", 60)
    assert "Training was interrupted" in told(hung)
    wait_until(lambda: not processes(hung), 60)
    wait_until(lambda: status(waiting) == "finished", 120)
    training = training.model_copy(update={"devices": 1})
    hung.save_config(hung.config().model_copy(update={"training": training}))
    undisturbed.is_what_becomes_of(hung)


def reached(run: Run, fault: str) -> bool:
    """Whether a run is where the fault strikes."""
    state = runs.look(run).state
    return bool(state.phase) if fault == "stuck@1" else state.started and state.step == int(fault[-1]) - 1


@pytest.mark.slow
def test_a_second_interrupt_ends_a_command_that_hangs(character: Path, tiny_sd: Path) -> None:
    run = plain(tiny_sd)
    command = [sys.executable, "-m", "trainer", "resume", run.folder]
    env = {**os.environ, "LIMNER_TEST": "1", "LIMNER_FAULT": "stuck@1"}
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, env=env) as typed:
        try:
            wait_until(lambda: bool(runs.look(run).state.phase))
            typed.send_signal(signal.SIGINT)
            time.sleep(1)
            assert typed.poll() is None
            assert (run.folder / "ask" / "stop").exists()
            typed.send_signal(signal.SIGINT)
            printed = typed.communicate(timeout=10)[1]
        finally:
            typed.kill()
    assert typed.returncode == 130
    assert "again to end it at once" in printed
    assert "Traceback" not in printed
    assert status(run) == "interrupted"
    done = limner("resume", run.folder)
    assert (done.returncode, status(run)) == (0, "finished"), done.stderr


@pytest.mark.slow
def test_previews_that_cannot_be_made_are_a_note_and_no_more(character: Path, tiny_sd: Path, workers: Workers) -> None:
    run = make(str(tiny_sd), steps=20, resolution=64)
    (run.folder / "previews").write_text("in the way")
    assert workers.work(run) == 0
    assert "The previews of step 20 could not be generated" in told(run)


@pytest.mark.parametrize(
    "stride", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)]
)
def test_a_power_cut_at_any_moment_of_any_write(character: Path, tiny_sd: Path, workers: Workers, stride: int) -> None:
    """Killed at the n-th moment of its durable writes: all that has its final name is whole."""
    run = make(str(tiny_sd), steps=4, resolution=64)
    settings = run.config()
    run.save_config(settings.model_copy(update={
        "checkpoint": settings.checkpoint.model_copy(update={"every": 1, "keep": 2}),
        "preview": settings.preview.model_copy(update={"every": 2}),
    }))  # fmt: skip
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
        if count % 5 == 0:
            assert workers.work(cut) == 0
            assert cut.export.read_bytes()[-1000:] == expected
            assert not list(cut.folder.rglob("*.part"))
    assert code == 0
    assert number > 30


@pytest.mark.skipif(not shutil.which("strace"), reason="strace tells what the system is asked for")
def test_what_gets_its_name_was_synced_before_and_its_folder_after(character: Path, tiny_sd: Path) -> None:
    """As the system sees it, through all of a run: pictures encoded, checkpoints, a preview, the adapter."""
    run = make(str(tiny_sd), steps=20, resolution=64)
    seen = run.folder.parent / "seen.txt"
    done = subprocess.run([
        "strace", "--follow-forks", "--seccomp-bpf", "--decode-fds=path", "--trace=fsync,rename", "--output", seen,
        sys.executable, "-m", "trainer", "work", run.folder,
    ], cwd=CHECKOUT, capture_output=True, text=True)  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip("nobody may look at what a process asks for here")
    assert done.returncode == 0, done.stderr
    named, synced = list[str](), set[str]()  # what has its name but no synced folder yet; all that was synced
    finals = []
    for call in re.findall(r"(fsync\(\d+<.*?>|rename\(\".*?\", \".*?\")", seen.read_text()):
        if call.startswith("fsync"):
            synced.add(path := call.partition("<")[2].rstrip(">"))
            named = [name for name in named if str(Path(name).parent) != path]
        else:
            part, final = re.findall(r"\"(.*?)\"", call)
            if final.endswith(storage.PART):  # an old checkpoint goes
                continue
            if str(run.folder.parent.parent) in final:
                assert part in synced, call
                named.append(final)
                finals.append(Path(final).name)
    assert named == []
    assert {"000005", "manifest.json", "adapter.safetensors", "rin.safetensors", "000020_0.png"} <= set(finals)


@pytest.mark.slow
def test_a_small_disk(
    character: Path, tiny_sd: Path, tmp_path: Path, workers: Workers, undisturbed: Undisturbed
) -> None:
    """A real disk without room: said before the start, or met on the way; with room again the run goes on."""
    with small_disk(tmp_path / "small", "6m") as disk:
        # It keeps more than it will ever make, which needs no room.
        config = plain(tiny_sd).config()
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1000})})
        run = runs.create(config, disk / "run")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(storage.free_space(disk) - 300_000))
        assert workers.work(run) == 2
        assert "the checkpoints of this run need about" in told(run)
        ballast.unlink()
        workers.start(run)
        wait_until(lambda: bool(runs.look(run).state.checkpoints))
        ballast.write_bytes(bytes(max(0, storage.free_space(disk) - 8192)))
        code = workers.wait()
        whole(run)
        ballast.unlink()
        assert code == 0 or status(run) == "interrupted" or "The disk is full" in told(run)
        undisturbed.is_what_becomes_of(run)


def test_the_order_of_checkpoints_is_that_of_steps_whatever_the_clock_says(
    character: Path, tiny_sd: Path, workers: Workers
) -> None:
    run = plain(tiny_sd)
    workers.work(run, "nan@12")
    for folder in checkpoint.folders(run):
        os.utime(folder, (2_000_000_000 - int(folder.name), 2_000_000_000 - int(folder.name)))
    assert workers.work(run) == 0
    begun = [event.step for event in events.read(run.log)[0] if event.kind == "started"]
    assert begun == [0, 10]


@pytest.mark.slow
def test_a_clock_that_jumps_while_it_runs_changes_nothing(character: Path, tiny_sd: Path) -> None:
    """A day ahead and two back by turns; then the right time again, with checkpoints far in the future."""
    from trainer.train import train

    ahead = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + ahead

    def jump(event: events.Event) -> None:
        nonlocal ahead
        if isinstance(event, events.Step):
            ahead += timedelta(days=(1, -2)[event.step % 2])
            if event.step == 12:
                runs.request(run, "stop")

    quiet, run = plain(tiny_sd), plain(tiny_sd)
    train(quiet.config(), quiet)
    with pytest.MonkeyPatch.context() as patch:
        for module in (events, export, writer):
            patch.setattr(module, "datetime", Clock)
        train(run.config(), Run(run.folder, jump))
    times = [event.time for event in events.read(run.log)[0]]
    assert times != sorted(times)
    assert whole(run) == [5, 10, 12]
    assert "Resume</b> continues from here" in told(run)
    for folder in checkpoint.folders(run):
        os.utime(folder, (4e9 - int(folder.name), 4e9 - int(folder.name)))
    train(run.config(), run)
    assert [event.step for event in events.read(run.log)[0] if event.kind == "started"] == [0, 12]
    one, two = load_file(quiet.export), load_file(run.export)
    assert all((one[key] == two[key]).all() for key in one)
    assert runs.look(run).state.losses == runs.look(quiet).state.losses


@pytest.mark.slow
@pytest.mark.parametrize("left", ["broken pictures", "captions alone"])
def test_without_a_picture_that_can_be_read_a_start_is_refused(
    character: Path, tiny_sd: Path, workers: Workers, left: str
) -> None:
    for picture in character.glob("*.png"):
        picture.write_bytes(b"no picture")
        if left == "captions alone":
            picture.unlink()
    assert len(list(character.glob("*.txt"))) == 14
    run = plain(tiny_sd)
    assert workers.work(run) == 2
    assert status(run) == "failed"
    assert "There are no images in the dataset" in told(run)
    done = limner("check", "rin")
    assert (done.returncode, "There are no images in this dataset." in done.stdout) == (2, True)
    done = limner("train", run.config_file, "--run", run.folder.parent / "typed")
    assert (done.returncode, "There are no images in the dataset" in done.stderr) == (2, True)


def test_one_good_picture_trains_and_the_bad_one_is_named(character: Path, tiny_sd: Path, workers: Workers) -> None:
    for picture in sorted(character.glob("*.png"))[1:]:
        picture.write_bytes(b"no picture")
    run = plain(tiny_sd)
    assert workers.work(run) == 0
    assert "13 files cannot be read as an image." in told(run)
    assert "(02.png, 03.png" in told(run)


@pytest.mark.nightly
def test_kills_at_random_moments(home: Path, workers: Workers) -> None:
    """As `python -m benchmarks.crash`, which does the same three hundred times."""
    kills = 40
    seed = time.time_ns() % 10**6
    report = crash.crash(workers, kills, steps=20, every=3, rng=random.Random(seed))
    assert not report.faults, seed
    assert report.kills == kills
    assert report.ended > 0
    assert report.most_repeated <= 3


@pytest.mark.slow
def test_a_caption_that_is_changed_while_it_trains_changes_nothing(character: Path, tiny_sd: Path) -> None:
    """The data set is read once: the adapter is that of the old captions, and a resume with the new ones is refused."""
    from trainer.train import train

    class Editor:
        def __call__(self, event: events.Event) -> None:
            if isinstance(event, events.Step) and event.step == 5:
                (character / "01.txt").write_text("something else")
                (character / "02.png").unlink()

    quiet, edited = plain(tiny_sd), plain(tiny_sd)
    train(quiet.config(), quiet)
    train(edited.config(), Run(edited.folder, Editor()))
    one, two = load_file(quiet.export), load_file(edited.export)
    assert all((one[key] == two[key]).all() for key in one)


def test_a_checkpoint_of_another_version_is_said(character: Path, tiny_sd: Path, workers: Workers) -> None:
    run = plain(tiny_sd)
    workers.work(run, "nan@12")
    for folder in checkpoint.folders(run):
        manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
        del manifest["groups"], manifest["sha256"][checkpoint.MANIFEST]
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"program": "9.9"}))
    assert workers.work(run) == 2
    assert "The checkpoint of step 10 was made by Limner 9.9" in told(run)


@pytest.mark.slow
@pytest.mark.parametrize("made", sorted(Path(__file__).parent.glob("made_by_*")), ids=lambda made: made.name)
def test_a_run_that_an_earlier_version_began_goes_on(
    character: Path, tiny_sd: Path, workers: Workers, made: Path
) -> None:
    run = Run(paths.outputs() / "earlier")
    shutil.copytree(made, run.folder)
    begun = run.config()
    base = begun.model.model_copy(update={"base": str(tiny_sd)})
    run.save_config(
        begun.model_copy(update={"model": base, "record": config.Record()})
    )  # its numbers are this machine's
    assert status(run) == "stopped"
    assert workers.work(run) == 0, runs.log_tail(run)
    assert [event.step for event in events.read(run.log)[0] if event.kind == "started"] == [0, 3]
    assert sorted(runs.look(run).state.losses) == list(range(1, 7))
    assert "damaged" not in told(run)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 16", "steps = -16", "training.steps"),
        ("steps = 16", "stepz = 16", "training.stepz is not a setting"),
        ('kind = "lora"', 'kind = "eval(1)"', "adapter"),
        ("[training]", "[training", "TOML"),
    ],
)
def test_a_worker_refuses_settings_that_no_form_would_give(
    character: Path, tiny_sd: Path, workers: Workers, old: str, new: str, words: str
) -> None:
    run = plain(tiny_sd)
    text = run.config_file.read_text()
    assert old in text
    run.config_file.write_text(text.replace(old, new, 1))
    assert workers.work(run) == 2
    assert words in told(run)


@pytest.mark.slow
def test_what_a_camera_wrote_stays_with_the_picture(character: Path, tiny_sd: Path, workers: Workers) -> None:
    """Neither it nor a file's name is in a thumbnail, a preview, an adapter; the camera is not in the logs either."""
    for picture in sorted(character.glob("*.png")):
        photo = picture.with_name(f"Anna-{picture.stem}.jpg")
        with Image.open(picture) as image:
            photo.write_bytes(pictures.saved(image.convert("RGB"), "JPEG", exif=pictures.exif(1)))
        caption_file(picture).rename(caption_file(photo))
        picture.unlink()
        images.thumbnail(photo.parent, photo)
    assert len(dataset.read(character)) == 14
    run = make(str(tiny_sd), steps=4, resolution=64)
    assert workers.work(run) == 0
    made = [path for folder in (run.folder, character / paths.CACHE) for path in folder.rglob("*") if path.is_file()]
    assert {".png", ".safetensors", ".webp", ".log", ".jsonl"} <= {path.suffix for path in made}
    for path in made:
        data = path.read_bytes()
        assert b"SECRET CAMERA" not in data, path
        assert b"Exif" not in data, path
        assert b"Anna" not in data or path.suffix in (".log", ".jsonl") or path.name == "measurements.json", path
