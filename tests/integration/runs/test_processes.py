"""Real workers: start, stop, kill at any moment, queue; and the command line on the same folders."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageChops

from tests import faults
from tests.conftest import CHECKOUT, HANG, unmeasured, wait
from tests.unit.runs.test_run import status
from tests.workers import Workers
from trainer import config, runs
from trainer.cli.commands import main
from trainer.data import dataset, images, sandbox
from trainer.data.captions import read_captions
from trainer.runs import Run, control, queue
from trainer.training import checkpoint


def make(base: str = "micro", **training: Any) -> Run:  # noqa: ANN401 - any settings
    settings: dict[str, Any] = {"name": "rin", "dataset": "rin", "trigger": "miraxo", "model": {"base": base}}
    settings["training"] = {"steps": 40, "batch_size": 4, "resolution": 128, "micro_batches": 1, **training}
    settings["training"]["gradient_checkpointing"] = "off"  # with it is given how, so that no memory is measured
    settings |= {"preview": {"every": 20, "steps": 3, "prompts": ["miraxo"]}, "checkpoint": {"every": 5}}
    return runs.create(config.build(settings | ({} if base == "micro" else {"preservation": {"share": 0.0}})))


def limner(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in this process, which has imported what it needs."""
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def processes(run: Run) -> list[int]:
    """All processes that work on a run, by number."""
    everyone = psutil.process_iter(["cmdline"])
    return sorted(each.pid for each in everyone if str(run.folder.resolve()) in (each.info["cmdline"] or ()))


@pytest.mark.slow
def test_stop_is_saved_and_resume_finishes(character: Path, tiny_sd: Path, workers: Workers) -> None:
    run = make(str(tiny_sd), steps=100_000, batch_size=1, resolution=64)  # it does not end before it is told to
    number = workers.start(run)
    wait(lambda: runs.look(run).state.step > 3)
    assert status(run) == "running"
    assert runs.look(run).seconds_left
    runs.request(run, "checkpoint")
    runs.request(run, "preview")
    wait(lambda: bool(runs.look(run).state.checkpoints) and bool(runs.look(run).state.previews))
    os.kill(number, signal.SIGTERM)
    assert (workers.wait(number), status(run)) == (0, "stopped")
    step = runs.look(run).state.step
    assert checkpoint.folders(run)[-1].name == f"{step:06d}"
    command = [sys.executable, "-m", "trainer", "resume", run.folder]
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, env=unmeasured()) as typed:
        wait(lambda: runs.look(run).state.step > step)
        typed.send_signal(signal.SIGINT)  # Ctrl-C
        assert "Traceback" not in typed.communicate(timeout=HANG)[1]
    assert (typed.returncode, status(run)) == (0, "stopped")
    step = runs.look(run).state.step
    assert checkpoint.folders(run)[-1].name == f"{step:06d}"
    training = run.config().training.model_copy(update={"steps": step + 3})
    run.save_config(run.config().model_copy(update={"training": training}))
    done = limner("resume", run.folder)
    assert done.returncode == 0, done.stderr
    assert f"from step {step} of {step + 3}" in done.stderr
    assert f"Finished after {step + 3} steps: rin.safetensors" in done.stderr


def test_doctor_and_check(character: Path) -> None:
    facts = json.loads(limner("doctor", "--json").stdout)
    assert facts["datasets"] == ["rin"]
    assert facts["cpu_cores"] >= 1
    done = limner("check", "rin", "--json", "--trigger", "nobody")
    assert (done.returncode, json.loads(done.stdout)["pictures"]) == (0, 14)
    assert "lacks the trigger word" in done.stdout
    (character.parent / "void").mkdir()
    done = limner("check", "void")
    assert (done.returncode, "no images" in done.stdout) == (2, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train absent.toml", "There is no file absent.toml."),
        ("resume absent", "is not a run folder"),
        ("inspect README.md", "not a safetensors file"),
        ("check ../nowhere", "There is no dataset 'nowhere'"),
        ("sample --prompt x --out /nowhere/x.png", "There is no folder 'nowhere'"),
        ("sample --prompt x --size big --out x.png", "is not a size"),
        ("sample --prompt x --adapter absent.safetensors --out x.png", "does not exist"),
        ("nonsense", "No such command"),
    ],
)
def test_wrong_usage_is_one_sentence(home: Path, line: str, words: str) -> None:
    done = limner(*line.split())
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


@pytest.mark.slow
def test_runs_that_were_cut_go_on_with_the_page(character: Path, tiny_sd: Path, workers: Workers) -> None:
    """Once from a step, and not if they were ended on purpose."""
    numbers: list[int] = []

    def begin(run: Run, fault: str = "") -> None:
        numbers.append(workers.start(run, fault))
        control.note_process(run, numbers[-1])

    for end in (lambda run: os.kill(numbers[-1], signal.SIGKILL), control.kill):
        run = make(str(tiny_sd), steps=12, resolution=64)
        runs.start(run, lambda run: begin(run, "hang@7"))
        wait(lambda run=run: runs.look(run).state.step == 6)
        end(run)
        workers.wait()
        assert status(run) == "interrupted"
    cut, ended = sorted(runs.all_runs(), key=lambda run: run.id)
    assert list(control.resume_cut(begin)) == [cut]
    assert list(control.resume_cut(begin)) == []
    assert (workers.wait(), status(cut), status(ended)) == (0, "finished", "interrupted")
    assert sorted(runs.look(cut).state.losses) == list(range(1, 13))
    run = make(str(tiny_sd), steps=12, resolution=64)  # which ends the machine each time
    control.note_process(run, os.getpid())
    assert list(control.resume_cut(lambda run: control.note_process(run, os.getpid()))) == [run]
    (run.folder / "ask" / "start").unlink()
    assert not list(control.resume_cut())


@pytest.mark.slow
def test_a_run_that_the_system_ended_goes_on_with_the_page(character: Path, tiny_sd: Path, workers: Workers) -> None:
    """As at a shutdown, which tells all programs to end; a run that its user stopped stays."""
    run = make(str(tiny_sd), steps=100_000, resolution=64)
    runs.start(run, workers.start)
    wait(lambda: runs.look(run).state.step > 3)
    os.kill(workers.newest, signal.SIGTERM)
    assert (workers.wait(), status(run)) == (0, "stopped")
    assert list(control.resume_cut(workers.start)) == [run]
    wait(lambda: status(run) == "running")
    runs.request(run, "stop")
    assert (workers.wait(), status(run)) == (0, "stopped")
    assert not list(control.resume_cut(workers.start))


TWO_CARDS = "cards@2"


def training(run: Run) -> bool:
    """Tell whether a run has done a step, after which it is paused, so that it takes no time of the machine."""
    if runs.look(run).state.step == 0:
        return False
    runs.pause(run)
    return True


@pytest.fixture
def _two_cards() -> Iterator[None]:
    with faults.injected(TWO_CARDS):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_two_cards")
def test_two_runs_train_at_once_and_a_kill_frees_a_card(character: Path, tiny_sd: Path, workers: Workers) -> None:
    first, second = (make(str(tiny_sd), steps=100_000, resolution=64) for _ in range(2))
    third, fourth = (make(str(tiny_sd), steps=2, resolution=64) for _ in range(2))
    numbers: dict[Run, int] = {}

    def start(run: Run) -> None:
        runs.start(run, executor=lambda run: numbers.update({run: workers.start(run, TWO_CARDS)}))

    for run in (first, second):
        start(run)
        wait(lambda run=run: training(run))
    assert [runs.look(run).state.cards for run in (first, second)] == [("0",), ("1",)]
    for run in (third, fourth):
        start(run)
        wait(lambda run=run: runs.is_locked(run.lock))
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


@pytest.fixture
def project(character: Path) -> Path:
    """A project with captions of several lines and of other forms, masks of each kind, and odd names."""
    (character / "01.txt").write_text("one caption\nanother caption\n")
    (character / "01.png").rename(character / "A picture (1) \u00e4.png")
    (character / "01.txt").rename(character / "A picture (1) \u00e4.txt")
    (character / "02.txt").rename(character / "02.caption")
    (character / "masks").mkdir()
    for number, mask in enumerate(("02.mask.png", "03-masklabel.png", "masks/04.png")):
        Image.new("L", (64, 64), 50 * number).save(character / mask)
    return character


def test_a_backup_of_a_project_can_be_uploaded(project: Path, home: Path) -> None:
    done = limner("export", "rin", home / "rin.zip")
    assert done.returncode == 0, done.stderr
    folder = dataset.create("mira")
    report = sandbox.add(folder, [("rin.zip", home / "rin.zip")])
    assert (len(report.added), report.masks, report.refused) == (14, 3, [])
    uploaded = {path.read_bytes(): path for path in dataset.image_files(folder)}
    for image in dataset.image_files(project):
        copy = uploaded.pop(image.read_bytes())
        assert read_captions(copy) == read_captions(image) != ()
        mask, copied = dataset.read_mask(image), dataset.read_mask(copy)
        assert bool(mask) == bool(copied)
        if mask:
            assert not ImageChops.difference(images.decode(mask), images.decode(copied)).getbbox()
    assert not uploaded


def test_a_backup_of_a_run_holds_its_files_once_it_has_ended(character: Path, home: Path) -> None:
    run = make(steps=8)
    for name in ("rin.safetensors", "checkpoints/000002/manifest.json", "events.jsonl", "worker.lock", "ask/start"):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text("x")
    done = limner("export", run.id, home / "x.zip")
    sentence = "This run is still running. Stop it first, or wait until it has ended.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    for name in ("nobody", "../rin", "."):
        done = limner("export", name, home / "x.zip")
        assert done.returncode == 2
        assert "There is no project or run" in done.stderr
    assert not (home / "x.zip").exists()
    (run.folder / "ask" / "start").rename(run.folder / "ask" / "stop")
    assert limner("export", run.id, home / "x.zip").returncode == 0
    with zipfile.ZipFile(home / "x.zip") as archive:
        names = {name.removeprefix(f"{run.id}/") for name in archive.namelist()}
    assert names == {"config.toml", "events.jsonl", "checkpoints/000002/manifest.json", "rin.safetensors"}
