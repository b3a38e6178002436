"""Real workers: start, stop, kill at any moment, queue; and the command line on the same folders."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import CHECKOUT
from tests.unit.ui.test_page import in_loop
from trainer import config, nvidia, runs
from trainer.cli.commands import main
from trainer.runs import Run, archive, cards, events, queue
from trainer.training import checkpoint
from ui import page
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient


def wait_until(what: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def make(base: str = "micro", **training: Any) -> Run:  # noqa: ANN401 - any settings
    return runs.create(
        config.build(
            {
                "name": "rin", "dataset": "rin", "trigger": "miraxo", "model": {"base": base},
                "training": {"steps": 40, "batch_size": 4, "resolution": 128, **training},
                "preview": {"every": 20, "steps": 3, "prompts": ["miraxo"]}, "checkpoint": {"every": 5},
                **({} if base == "micro" else {"preservation": {"share": 0.0}}),
            }
        )
    )  # fmt: skip


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


def limner_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as a person types it."""
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)


def status(run: Run) -> str:
    return runs.look(run).status


def processes(run: Run) -> list[int]:
    """All processes that work on a run, by number."""
    pids = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(run.folder.resolve()).encode() in words:
                pids.append(int(process.name))
    return sorted(pids)


def pid(run: Run) -> int:
    """The process that holds the run's lock, whatever it is doing; 0 if there is none."""
    return next(iter(processes(run)), 0)


@pytest.mark.nightly
def test_a_paused_run_goes_on_where_it_was(character: Path) -> None:
    run = make()
    runs.start(run)
    wait_until(lambda: runs.look(run).state.step >= 3)
    runs.pause(run)
    time.sleep(2)  # the step that was under way
    step = runs.look(run).state.step
    time.sleep(2)
    assert runs.look(run).state.step == step < 40
    assert runs.look(run).paused
    runs.pause(run, go_on=True)
    wait_until(lambda: status(run) == "finished")
    assert sorted(runs.look(run).state.losses) == list(range(1, 41))
    archive.extend(run, 5)
    runs.start(run)
    wait_until(lambda: status(run) == "finished" and runs.look(run).state.step == 45)


@pytest.mark.nightly
def test_killed_again_and_again_and_still_the_same_bits(character: Path) -> None:
    """SIGKILL at random moments, from start-up to the last step; the same run from the command line besides."""
    rng = random.Random(time.time_ns())  # another place each time; a failure prints the moments
    run = make()
    moments: list[float] = []
    survived = 0
    for _ in range(10):
        runs.start(run)
        moments.append(rng.uniform(0.2, 7.0))
        begun = time.monotonic()
        wait_until(lambda: pid(run) > 0 or status(run) == "finished")
        while time.monotonic() - begun < moments[-1] and status(run) != "finished":
            time.sleep(0.02)
        if status(run) == "finished":
            survived += 1
            break
        os.kill(pid(run), signal.SIGKILL)
        wait_until(lambda: not runs.is_locked(run.lock))
        assert not list(run.folder.glob("*.safetensors")) or status(run) == "interrupted"
        (run.folder / "ask" / "start").unlink(missing_ok=True)
        for folder in checkpoint.folders(run):
            assert checkpoint.is_intact(folder), (folder, moments)
    if status(run) != "finished":
        assert status(run) == "interrupted"
        runs.start(run)
        wait_until(lambda: status(run) == "finished")
    assert sorted(runs.look(run).state.losses) == list(range(1, 41)), moments
    assert not [path for path in run.folder.rglob("*.part*")], moments

    again = run.folder.parent / "again"
    done = limner("train", run.config_file, "--run", again)
    assert done.returncode == 0, done.stderr
    first, second = load_file(run.export), load_file(again / "rin.safetensors")
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first), moments
    assert runs.look(Run(again)).state.losses == runs.look(run).state.losses


@pytest.mark.slow
def test_stop_is_saved_and_resume_finishes(character: Path, tiny_sd: Path) -> None:
    run = make(str(tiny_sd), steps=100, batch_size=1)
    runs.start(run)
    wait_until(lambda: runs.look(run).state.step > 3)
    assert status(run) == "running"
    assert runs.look(run).seconds_left
    runs.request(run, "checkpoint")
    runs.request(run, "preview")
    wait_until(lambda: bool(runs.look(run).state.checkpoints) and bool(runs.look(run).state.previews))
    os.kill(pid(run), signal.SIGTERM)
    wait_until(lambda: status(run) == "stopped", 60)
    step = runs.look(run).state.step
    assert checkpoint.folders(run)[-1].name == f"{step:06d}"
    command = [sys.executable, "-m", "trainer", "resume", run.folder]
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as typed:
        wait_until(lambda: runs.look(run).state.step > step)
        typed.send_signal(signal.SIGINT)  # Ctrl-C
        assert "Traceback" not in typed.communicate(timeout=30)[1]
    assert (typed.returncode, status(run)) == (0, "stopped")
    step = runs.look(run).state.step
    assert checkpoint.folders(run)[-1].name == f"{step:06d}"
    done = limner("resume", run.folder)
    assert done.returncode == 0, done.stderr
    assert f"from step {step} of 100" in done.stderr
    assert "Finished after 100 steps: rin.safetensors" in done.stderr


@pytest.mark.slow
def test_two_runs_queue_and_a_waiting_one_is_light(character: Path, tiny_sd: Path) -> None:
    first, second = make(str(tiny_sd), steps=100_000), make(str(tiny_sd), steps=5)
    runs.start(first)
    wait_until(lambda: status(first) == "running")
    runs.start(second)
    wait_until(lambda: runs.is_locked(second.lock))
    time.sleep(1)
    assert status(second) == "waiting"
    assert queue.position(second) == 1
    assert "torch" not in Path(f"/proc/{pid(second)}/maps").read_text(encoding="utf-8")
    runs.request(first, "stop")
    wait_until(lambda: status(second) == "finished")
    assert status(first) == "stopped"


@pytest.mark.slow
def test_a_waiting_run_can_be_stopped(character: Path) -> None:
    run = make()
    lock = queue.FileLock(cards.known()[0].lock)
    with lock:
        runs.start(run)
        wait_until(lambda: runs.is_locked(run.lock))
        runs.request(run, "stop")
        wait_until(lambda: status(run) == "stopped")


@pytest.mark.slow
def test_what_fails_is_said_with_its_remedy(character: Path) -> None:
    run = make("/nowhere/base")
    runs.start(run)
    wait_until(lambda: status(run) == "failed")
    state = runs.look(run).state
    assert state.message == "The base model 'base' does not exist."
    assert "micro" in state.remedy
    assert state.message in runs.log_tail(run)
    assert "Traceback" not in runs.log_tail(run)


def test_the_command_line_all_the_way(character: Path, tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text('name = "mira"\ndataset = "rin"\npreset = "character"\ntrigger = "miraxo"\n')
    folder = tmp_path / "run"
    done = limner_process(
        "train",
        toml,
        "--run",
        folder,
        "--set",
        "training.steps=3",
        "--set",
        "training.batch_size=1",
        "--set",
        "preview.every=0",
    )
    assert done.returncode == 0, done.stderr
    assert "Finished after 3 steps: mira.safetensors" in done.stderr
    steps = [event for event in events.read(folder / "events.jsonl")[0] if event.kind == "step"]
    assert [event.step for event in steps] == [1, 2, 3]

    inspected = limner("inspect", folder / "mira.safetensors", "--json")
    assert json.loads(inspected.stdout)["trigger"] == "miraxo"
    for number, adapter in enumerate((f"{folder}/mira.safetensors", f"{folder}/mira.safetensors:0")):
        out = tmp_path / f"{number}.png"
        done = limner("sample", "--prompt", "miraxo", "--adapter", adapter, "--steps", "2", "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(out)
    plain = tmp_path / "plain.png"
    assert limner("sample", "--prompt", "miraxo", "--steps", "2", "--out", plain).returncode == 0
    from PIL import Image

    pictures = []
    for path in (tmp_path / "0.png", tmp_path / "1.png", plain):
        with Image.open(path) as image:
            pictures.append(image.tobytes())
    assert pictures[0] != pictures[1] == pictures[2]

    done = limner("train", toml, "--run", folder)
    assert done.returncode == 2
    assert "already exists" in done.stderr


@pytest.mark.nightly
def test_a_card_that_is_not_used_is_said_by_the_doctor_the_run_and_the_page(
    character: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '100.1, 8.6, NVIDIA GeForce RTX 3060'\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sentence = "NVIDIA GeForce RTX 3060 is not used: "
    nvidia.advice.cache_clear()
    try:
        assert json.loads(limner("doctor", "--json").stdout)["advice"].startswith(sentence)
        head = in_loop(lambda: page.build(SamplerClient(), RunWatcher())).get_config_file()
        assert sentence in str(head["components"])
    finally:
        nvidia.advice.cache_clear()
    run = make(str(tiny_sd), steps=1, resolution=64)
    runs.start(run)
    wait_until(lambda: status(run) == "finished")
    assert any(warning.startswith(sentence) for warning in runs.look(run).state.warnings)


def test_doctor_and_check(character: Path) -> None:
    facts = json.loads(limner("doctor", "--json").stdout)
    assert facts["datasets"] == ["rin"]
    assert facts["cpu_cores"] >= 1
    done = limner("check", "rin", "--json", "--trigger", "nobody")
    assert done.returncode == 0
    assert json.loads(done.stdout)["pictures"] == 14
    assert "lacks the trigger word" in done.stdout
    (character.parent / "void").mkdir()
    done = limner("check", "void")
    assert (done.returncode, "no images" in done.stdout) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "absent.toml"], "There is no file absent.toml."),
        (["resume", "absent"], "is not a run folder"),
        (["inspect", "README.md"], "not a safetensors file"),
        (["inspect", "absent.safetensors"], "There is no file"),
        (["check", "../nowhere"], "There is no dataset 'nowhere'"),
        (["sample", "--prompt", "x", "--out", "/nowhere/x.png"], "There is no folder 'nowhere'"),
        (["sample", "--prompt", "x", "--size", "big", "--out", "x.png"], "is not a size"),
        (
            ["sample", "--prompt", "x", "--base", "absent/base", "--out", "x.png"],
            "'absent/base' is not on this machine",
        ),
        (["sample", "--prompt", "x", "--adapter", "absent.safetensors", "--out", "x.png"], "does not exist"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_is_one_sentence(home: Path, arguments: list[str], words: str) -> None:
    done = limner(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (
            'name = "a"\ndataset = "rin"\n[training]\nstep = 3',
            "training.step is not a setting (did you mean training.steps?)",
        ),
        ('name = "a"\ndataset = "void"', "There is no dataset 'void'"),
        ('name = "../a"\ndataset = "rin"', "letters, digits"),
        ('name = "a"\ndataset = "empty"', "There are no images in the dataset 'empty'"),
    ],
)
def test_refused_settings(character: Path, tmp_path: Path, toml: str, words: str) -> None:
    (character.parent / "empty").mkdir()
    (tmp_path / "c.toml").write_text(toml)
    done = limner("train", tmp_path / "c.toml", "--run", tmp_path / "run")
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
