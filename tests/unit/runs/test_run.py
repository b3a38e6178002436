"""Run folders: the state table row by row, the queue's order, names, commands. Locks are held by real processes."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import HANG
from trainer import config, processes, runs
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import Run, archive, backup, cards, control, events, queue
from trainer.runs.run import PROCESS
from ui import launch
from ui.state import projects
from ui.widgets import run_html


def make(name: str = "rin") -> Run:
    return runs.create(config.build({"name": name, "dataset": "rin"}))


def test_a_run_is_starting_while_its_process_lives(home: Path) -> None:
    """However long that takes: on a slow machine a worker needs minutes until it has its lock."""
    run = make()

    def begin(run: Run) -> None:
        control.note_process(run, slow.pid)

    with processes.start([sys.executable, "-c", "input()"], stdin=processes.PIPE) as slow:
        runs.start(run, executor=begin)
        long_ago = time.time() - 86_400
        os.utime(run.folder / "ask" / "start", (long_ago, long_ago))
        assert status(run) == "waiting"
        assert "Starting, this can take a minute" in run_html.status(runs.look(run))
        note = json.loads((run.folder / "ask" / PROCESS).read_text())
        (run.folder / "ask" / PROCESS).write_text(json.dumps(note | {"created": note["created"] - 60}))
        assert status(run) == "interrupted", "another process has its number now"
        (run.folder / "ask" / PROCESS).write_text("[]")
        assert status(run) == "interrupted"
        begin(run)
        control.kill(run)
    assert slow.returncode != 0
    assert status(run) == "interrupted"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock, held by another process for real."""
    code = f"from filelock import FileLock\nwith FileLock({str(path)!r}): print('held', flush=True), input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def start_event() -> events.Started:
    return events.Started(step=0, steps=9, pid=1, device="CPU")


def steps(*times: datetime, seconds: float = 2) -> list[events.Step]:
    """Return steps from the first one on that ended at these times and took these seconds each."""
    facts = {"loss": 1, "learning_rate": 1, "grad_norm": 1, "seconds": seconds, "memory": 1}
    return [events.Step(step=step, time=time, **facts) for step, time in enumerate(times, 1)]


def status(run: Run) -> str:
    return runs.look(run).status


def named(name: str) -> Run:
    """A run of this folder name that was started; nobody works on it yet."""
    made = make()
    made.folder.rename(made.folder.with_name(name))
    run = Run(made.folder.with_name(name))
    (run.folder / "ask" / "start").touch()
    return run


def test_waiting_runs_are_put_in_another_order_which_stays(home: Path) -> None:
    first, second, third = map(named, ("0001", "0002", "0003"))
    assert queue.waiting() == [first, second, third]
    for run, place, order in (
        (third, 1, [third, first, second]),
        (third, 2, [first, third, second]),
        (first, 99, [third, second, first]),
    ):
        queue.move(run, place)
        assert queue.waiting() == order
    newest = named("0000")
    assert queue.waiting() == [*order, newest], "who comes later is behind those who were put in order"
    assert json.loads((home / "outputs" / ".queue.json").read_text()) == ["0003", "0002", "0001"]
    with held(cards.known()[0].lock):
        assert [queue.position(run) for run in (*order, newest)] == [1, 2, 3, 4]
        assert queue.line() == [*order, newest]
    assert queue.line() == [second, first, newest], "one can begin at once"
    for damaged in ("[", "7", ""):
        (home / "outputs" / ".queue.json").write_text(damaged)
        assert queue.waiting() == [newest, first, second, third]
    with pytest.raises(UserError, match="does not wait"):
        queue.move(make(), 1)


def test_a_run_on_hold_lets_others_pass_until_it_is_released(home: Path) -> None:
    older, newer = named("0001"), named("0002")
    queue.hold(older)
    assert older.on_hold
    with held(older.lock):
        assert queue.position(newer) == 0
        assert queue.line() == [older]
        with held(cards.known()[0].lock):
            assert queue.position(newer) == 1
        queue.wait_for_cards(newer).release()
    with ThreadPoolExecutor(1) as thread:
        resting = thread.submit(queue.wait_for_cards, older)
        time.sleep(0.8)
        assert not resting.done()
        assert not runs.is_locked(cards.known()[0].lock)
        queue.hold(older, release=True)
        resting.result(timeout=HANG).release()
    with pytest.raises(UserError, match="does not wait"):
        queue.hold(newer)
    third = named("0003")
    queue.hold(third)
    runs.request(third, "stop")
    with pytest.raises(runs.StopRequestedError):
        queue.wait_for_cards(third)
    (third.folder / "ask" / "start").unlink()
    runs.start(third, executor=lambda _: None)
    assert not third.on_hold, "a new start forgets it"


def test_commands_are_taken_once(home: Path) -> None:
    run = make()
    runs.request(run, "stop")
    assert run.take_request("stop")
    assert not run.take_request("stop")
    runs.request(run, "stop")
    with pytest.raises(runs.StopRequestedError):
        run.progress("x", 0, 1)
    runs.request(run, "stop")
    runs.start(run, executor=lambda _: None)
    assert not run.take_request("stop"), "a start forgets old commands"
    assert status(run) == "waiting"
    for away in (-runs.START_GRACE - 1, 86_400):  # long ago; or the clock was set back since
        then = time.time() + away
        os.utime(run.folder / "ask" / "start", (then, then))
        assert status(run) == "interrupted", "no worker took it"
    run.lock.touch()
    with ThreadPoolExecutor(8) as threads:  # to look at a lock is not to hold it
        assert not any(threads.map(lambda _: runs.is_locked(run.lock), range(2000)))


@pytest.mark.parametrize("part", ["ask", "events.jsonl", "worker.lock"])
def test_a_run_that_cannot_be_read_hides_no_others(home: Path, part: str) -> None:
    """Here a folder lies in the place of its file, or a link to itself; it may also be of another user."""
    run = make()
    shutil.rmtree(run.folder / "ask")
    if part == "worker.lock":
        run.lock.mkdir()
    else:
        (run.folder / part).symlink_to(part)
    assert (runs.look(run).status, runs.look(run).is_unresponsive(0)) == ("interrupted", False)


def test_twenty_who_start_at_once_have_their_own_folders(home: Path) -> None:
    with ThreadPoolExecutor(20) as people:
        made = list(people.map(lambda _: make(), range(20)))
    assert {run.folder for run in runs.all_runs()} == {run.folder for run in made}
    assert len(runs.all_runs()) == 20
    with pytest.raises(UserError, match="already exists"):
        runs.create(config.build({"name": "rin", "dataset": "rin"}), made[0].folder)


ENDS = {
    "stopped": events.Stopped(step=1),
    "finished": events.Finished(step=9, export="rin.safetensors"),
    "failed": events.Failed(message="m", remedy="r", traceback="t"),
}

LOGGED = [
    *ENDS.values(),
    start_event(),
    events.Phase(name="x", done=1, total=2),
    *steps(datetime(2026, 1, 1, tzinfo=UTC)),
]


@given(st.lists(st.sampled_from(LOGGED)), st.booleans(), st.booleans())
def test_whatever_was_logged_a_run_is_in_one_state(log: list[events.Event], locked: bool, starting: bool) -> None:
    with TemporaryDirectory() as folder:
        run = Run(Path(folder))
        (run.folder / "ask").mkdir()
        for event in log:
            run.report(event)
        if starting:
            (run.folder / "ask" / "start").touch()
        last = next((event.kind for event in reversed(log) if event.kind in ("started", *ENDS)), "")
        with FileLock(run.lock) if locked else nullcontext():
            if locked or starting:  # it can be stopped, and is not started a second time
                assert status(run) == ("running" if last == "started" and not starting else "waiting")
                with pytest.raises(UserError, match="already running"):
                    runs.start(run, executor=lambda _: None)
                with pytest.raises(UserError, match="Stop it first"):
                    archive.delete(run)
                return
        assert status(run) == (last if last in ENDS else "interrupted")
        runs.start(run, executor=lambda _: None)  # and from any other state it can be started again
        assert status(run) == "waiting"


def test_a_worker_is_silent_after_ten_minutes_or_ten_steps(home: Path) -> None:
    run, begun = make(), datetime.now(UTC)
    start = begun.timestamp()
    with held(run.lock):
        (run.folder / "ask" / "start").touch()
        run.report(events.Began(pid=7, time=begun))
        assert runs.look(run).state.pid == 7
        assert not runs.look(run).is_silent(start + 10_000), "it waits for the device"
        (run.folder / "ask" / "start").unlink()
        for event in (
            events.Phase(name="x", done=0, total=1, time=begun),
            start_event().model_copy(update={"time": begun}),
        ):
            run.report(event)
            assert not runs.look(run).is_silent(start + 590)
            assert runs.look(run).silence(start + 610) == pytest.approx(610)
        for step in steps(*(begun + timedelta(seconds=20 * number) for number in range(1, 5)), seconds=20):
            run.report(step)
        assert [runs.look(run).is_silent(start + 80 + seconds) for seconds in (190, 210)] == [False, True]
    assert not runs.look(run).is_silent(start + 10_000), "nobody is at work"


def test_a_run_that_did_not_hear_that_it_is_to_stop_is_deaf(home: Path) -> None:
    run = make()
    with held(run.lock):
        run.report(start_event())
        assert not runs.look(run).is_unresponsive(time.time())
        control.stop(run)
        requested = (run.folder / "ask" / "stop").stat().st_mtime
        control.stop(run)
        assert (run.folder / "ask" / "stop").stat().st_mtime == requested, "its time runs from the first request"
        assert [runs.look(run).is_unresponsive(requested + seconds) for seconds in (9, 11)] == [False, True]
        assert run.take_request("stop")
        assert not runs.look(run).is_unresponsive(requested + 11), "it has heard it, and saves"
    runs.request(run, "stop")
    assert not runs.look(run).is_unresponsive(time.time() + 60), "nobody is at work"


def test_nobody_is_ended_for_a_run_that_no_worker_holds(home: Path) -> None:
    run = make()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        run.report(events.Began(pid=other.pid))
        control.kill(run)
        assert other.poll() is None
        with held(run.lock):
            control.kill(run)
            assert other.wait(HANG) != 0


def test_the_time_left_does_not_follow_the_clock_on_the_wall(home: Path) -> None:
    """Neither a laptop's sleep nor a clock that is set back changes it; a preview between two steps counts."""
    run, now = make(), datetime.now(UTC)
    times = [now + timedelta(hours=hours) for hours in (0, 13, -24, -23)]
    later = times[-1] + timedelta(seconds=20)
    with held(run.lock):
        for event in (start_event(), *steps(*times)):
            run.report(event)
        view = runs.look(run)
        assert (view.status, view.state.step) == ("running", 4)
        assert (view.seconds_per_step, view.seconds_left) == (2, 10)
        assert not view.is_silent(times[-1].timestamp())
        run.report(events.Preview(step=4, time=later, file="000004_0.png", prompt="x", seed=1))
        run.report(steps(later)[0].model_copy(update={"step": 5}))
        assert runs.look(run).seconds_per_step == (3 * 2 + 20 + 2) / 4


def test_relative_paths_mean_the_same_everywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for folder in ("base", "pictures", "datasets/known"):
        (home / folder).mkdir()
    made = runs.create(config.build({"name": "x", "dataset": "pictures", "model": {"base": "base"}})).config()
    assert (made.dataset, made.model.base) == (str(home / "pictures"), str(home / "base"))
    made = runs.create(config.build({"name": "x", "dataset": "known"})).config()
    assert (made.dataset, made.model.base) == ("known", "micro")


def test_what_is_in_a_bin_stays_for_a_week(home: Path) -> None:
    """The start of the page's server looks; what was made long ago and deleted now is not old."""
    long_ago, hours = time.time() - 30 * 86400, 3600
    run, other = make("first"), make("second")
    folder, projects_of_it = dataset.create("rin"), [dataset.create(name) for name in ("mira", "kim")]
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    for path in (run.folder, other.folder, folder / "a.png", folder / "b.png", *projects_of_it):
        os.utime(path, (long_ago, long_ago))
    archive.delete(run)
    archive.delete(other)
    places = [dataset.remove(folder / name) for name in ("a.png", "b.png")]
    for project in projects_of_it:
        projects.delete(project.name)
    bins = [archive.deleted(), places, projects.deleted()]
    for binned in bins:
        for path, age in zip(binned, (169 * hours, 167 * hours), strict=True):
            os.utime(path, (time.time() - age, time.time() - age))
    launch.lock_home().release()
    assert [archive.deleted(), list((folder / ".bin").iterdir()), projects.deleted()] == [rest[1:] for rest in bins]


def test_a_job_that_an_earlier_version_left_in_a_run_changes_nothing(home: Path) -> None:
    run = make("one")
    old = run.folder / "measured"
    (old / "ask").mkdir(parents=True)
    (old / "config.toml").write_text('task = "measure"\n', encoding="utf-8")
    (old / "table.json").write_text("{}", encoding="utf-8")
    assert runs.all_runs() == [run]
    backup.write_run(run, home / "run.zip")
    with zipfile.ZipFile(home / "run.zip") as file:
        assert [name for name in file.namelist() if "measured" in name] == []
    assert archive.rename(run, "two") in runs.all_runs()


def test_runs_are_renamed_deleted_and_come_back(home: Path) -> None:
    first, second = make("one"), make("two")
    renamed = archive.rename(first, " red-hair ")
    assert renamed.id == f"{first.id[:17]}_red-hair", "it keeps its date"
    assert renamed.config().name == "one"
    assert archive.rename(renamed, "red-hair") == renamed
    for name in ("", "../x", "a b"):
        with pytest.raises(UserError):
            archive.rename(renamed, name)
    with held(second.lock), pytest.raises(UserError, match="still running"):
        archive.rename(second, "x")
    for run in (renamed, second):
        archive.delete(run)
    assert [archive.restore_last(), archive.restore_last()] == [second, renamed]
    with pytest.raises(UserError, match="no deleted run"):
        archive.restore_last()
    archive.delete(renamed)
    renamed.folder.mkdir()
    with pytest.raises(UserError, match="Another run has this name"):
        archive.restore_last()


def test_a_paused_run_rests_until_it_is_let_go_or_stopped(home: Path) -> None:
    from accelerate import Accelerator

    from trainer.training import distributed

    run, moments = make(), list[str]()

    @contextmanager
    def paused() -> Iterator[None]:
        moments.append("paused")
        yield
        moments.append("goes on")

    def requests() -> set[str]:
        return distributed.requests(Accelerator(cpu=True), run, start_event().model_copy(update={"step": 3}), paused)

    assert requests() == set()
    assert not run.log.exists()
    assert not moments
    runs.pause(run)
    with held(run.lock):
        run.report(start_event())
        assert runs.look(run).paused
    with ThreadPoolExecutor(1) as thread:
        resting = thread.submit(requests)
        time.sleep(3 * runs.PAUSE_POLL)
        assert (resting.done(), moments) == (False, ["paused"])
        runs.pause(run, go_on=True)
        resting.result(timeout=HANG)
    assert (moments, runs.look(run).state.step) == (["paused", "goes on"], 3)
    runs.pause(run)
    runs.request(run, "stop")
    assert requests() == {"stop"}
