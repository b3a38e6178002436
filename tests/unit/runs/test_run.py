"""Run folders: the state table row by row, the queue's order, names, commands. Locks are held by real processes."""

import json
import os
import subprocess
import sys
import time
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

from trainer import config, runs
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import Run, archive, cards, control, events, queue
from ui import launch


def make(name: str = "rin") -> Run:
    return runs.create(config.build({"name": name, "dataset": "rin"}))


def started(run: Run, step: int = 0) -> None:
    run.report(events.Started(step=step, steps=9, pid=1, device="CPU"))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock, held by another process for real."""
    code = (
        f"from filelock import FileLock; lock = FileLock({str(path)!r}); lock.acquire(); print('held', flush=True); "
        "input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


def status(run: Run) -> str:
    return runs.look(run).status


def test_states_without_a_worker(home: Path) -> None:
    run = make()
    assert status(run) == "interrupted"
    (run.folder / "ask" / "start").touch()
    assert status(run) == "waiting"
    for away in (-runs.START_GRACE - 1, 86_400):  # long ago; or the clock was set back since
        then = time.time() + away
        os.utime(run.folder / "ask" / "start", (then, then))
        assert status(run) == "interrupted"
    started(run)
    assert status(run) == "interrupted"
    run.report(events.Stopped(step=3))
    assert status(run) == "stopped"
    run.report(events.Failed(message="m", remedy="r", traceback=""))
    assert status(run) == "failed"
    run.report(events.Finished(step=9, export="rin.safetensors"))
    assert status(run) == "finished"


def test_states_with_a_worker(home: Path) -> None:
    run = make()
    with held(run.lock):
        assert status(run) == "waiting"
        started(run)
        assert status(run) == "running"
        (run.folder / "ask" / "start").touch()
        assert status(run) == "waiting"
        (run.folder / "ask" / "start").unlink()
        run.report(events.Stopped(step=3))
        assert status(run) == "waiting"  # resumed: it has not reported Started yet
        with pytest.raises(UserError, match="already running"):
            runs.start(run, executor=lambda _: None)
        with pytest.raises(UserError, match="Stop it first"):
            archive.delete(run)
    assert status(run) == "stopped"  # the kernel frees the lock of a killed process at once


def test_a_view_reads_only_what_is_new(home: Path) -> None:
    run = make()
    started(run)
    first = runs.look(run)
    run.report(events.Warned(message="x"))
    second = runs.look(run, first)
    assert second.state == runs.look(run).state
    assert second.offset > first.offset


def named(name: str) -> Run:
    """A run of this folder name that was started; nobody works on it yet."""
    made = make()
    made.folder.rename(made.folder.with_name(name))
    run = Run(made.folder.with_name(name))
    (run.folder / "ask" / "start").touch()
    return run


def test_the_oldest_waiting_run_goes_first(home: Path) -> None:
    older, newer = named("0001"), make("b")
    with held(older.lock):
        assert queue.position(newer) == 0  # nobody has started it
        (newer.folder / "ask" / "start").touch()
        assert queue.position(newer) == 1  # the older one can begin at once
        runs.request(newer, "stop")
        with pytest.raises(runs.StopRequestedError):
            queue.wait_for_cards(newer)
    (older.folder / "ask" / "start").unlink()
    assert queue.position(newer) == 0
    lock = queue.wait_for_cards(newer)
    assert runs.is_locked(cards.known()[0].lock)
    assert queue.position(newer) == 0  # it is held by itself
    lock.release()


def test_waiting_runs_are_put_in_another_order_which_stays(home: Path) -> None:
    first, second, third = map(named, ("0001", "0002", "0003"))
    assert queue.waiting() == [first, second, third]
    queue.move(third, 1)
    assert queue.waiting() == [third, first, second]
    queue.move(third, 2)
    assert queue.waiting() == [first, third, second]
    queue.move(first, 99)
    assert queue.waiting() == [third, second, first]
    newest = named("0000")
    assert queue.waiting() == [third, second, first, newest], "who comes later is behind those who were put in order"
    assert json.loads((home / "outputs" / ".queue.json").read_text()) == ["0003", "0002", "0001"]
    with held(cards.known()[0].lock):
        assert [queue.position(run) for run in (third, second, first, newest)] == [1, 2, 3, 4]
        assert queue.line() == [third, second, first, newest]
    assert queue.line() == [second, first, newest], "one can begin at once"
    for damaged in ("[", "7", ""):
        (home / "outputs" / ".queue.json").write_text(damaged)
        assert queue.waiting() == [newest, first, second, third]
    with pytest.raises(UserError, match="does not wait"):
        queue.move(make(), 1)


def test_the_worker_of_a_run_goes_by_the_order(home: Path) -> None:
    older, newer = named("0001"), named("0002")
    with held(older.lock):
        claim = queue.Claim(newer, cards.Wish())
        claim.update()
        assert not claim.cards
        queue.move(newer, 1)
        claim.update()
        assert claim.is_complete
        claim.release()
        queue.wait_for_cards(newer).release()


def test_a_run_on_hold_lets_others_pass_until_it_is_released(home: Path) -> None:
    older, newer = named("0001"), named("0002")
    queue.hold(older)
    assert older.on_hold
    with held(older.lock):
        assert queue.position(newer) == 0
        assert queue.line() == [older]
        queue.wait_for_cards(newer).release()
    with ThreadPoolExecutor(1) as thread:
        resting = thread.submit(queue.wait_for_cards, older)
        time.sleep(0.8)
        assert not resting.done()
        assert not runs.is_locked(cards.known()[0].lock)
        queue.hold(older, release=True)
        resting.result(timeout=30).release()
    with pytest.raises(UserError, match="does not wait"):
        queue.hold(newer)
    with pytest.raises(UserError, match="does not wait"):
        queue.move(older, 1)


def test_a_run_on_hold_can_be_stopped_and_a_new_start_forgets_the_hold(home: Path) -> None:
    run = named("0001")
    queue.hold(run)
    runs.request(run, "stop")
    with pytest.raises(runs.StopRequestedError):
        queue.wait_for_cards(run)
    (run.folder / "ask" / "start").unlink()
    runs.start(run, executor=lambda _: None)
    assert not run.on_hold


def test_the_runs_of_several_people_take_turns_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_SHARED", str(home))
    locks = []
    for name in ("anna", "ben"):
        monkeypatch.setenv("LIMNER_HOME", str(home / "people" / name))
        run = make()
        (run.folder / "ask" / "start").touch()
        if locks:
            assert queue.position(run) == 1
            runs.request(run, "stop")
            with pytest.raises(runs.StopRequestedError):
                queue.wait_for_cards(run)
        else:
            locks.append(queue.wait_for_cards(run))
    locks[0].release()
    queue.wait_for_cards(run).release()


def test_a_run_is_held_once(home: Path) -> None:
    run = make()
    lock = queue.lock_run(run)
    assert isinstance(lock, FileLock)
    assert runs.is_locked(run.lock)
    lock.release()
    assert not runs.is_locked(run.lock)


def test_commands_are_taken_once(home: Path) -> None:
    run = make()
    runs.request(run, "stop")
    assert run.take_request("stop")
    assert not run.take_request("stop")
    runs.request(run, "stop")
    with pytest.raises(runs.StopRequestedError):
        run.progress("x", 0, 1)


def test_starting_forgets_old_commands(home: Path) -> None:
    run = make()
    runs.request(run, "stop")
    runs.start(run, executor=lambda _: None)
    assert not run.take_request("stop")
    assert status(run) == "waiting"


def test_runs_of_one_name_never_share_a_folder(home: Path) -> None:
    folders = {make().folder for _ in range(3)}
    assert len(folders) == 3
    assert {run.folder for run in runs.all_runs()} == folders
    with pytest.raises(UserError, match="already exists"):
        runs.create(config.build({"name": "rin", "dataset": "rin"}), next(iter(folders)))


def test_twenty_who_start_at_once_have_folders_of_their_own(home: Path) -> None:
    with ThreadPoolExecutor(20) as people:
        made = [future.result() for future in [people.submit(make) for _ in range(20)]]
    assert len({run.folder for run in made}) == 20
    assert all(run.config().name == "rin" for run in made)


ENDS = [events.Stopped(step=1), events.Finished(step=9, export="rin.safetensors"),
        events.Failed(message="m", remedy="r", traceback="t")]  # fmt: skip
OTHERS = [events.Started(step=0, steps=9, pid=1, device="CPU"), events.Phase(name="x", done=1, total=2),
          events.Step(step=1, loss=1.0, learning_rate=1, grad_norm=1, seconds=1, memory=1)]  # fmt: skip


@given(st.lists(st.sampled_from([*ENDS, *OTHERS])), st.booleans(), st.booleans())
def test_whatever_was_logged_a_run_is_in_one_state_and_can_be_left(
    log: list[events.Event], locked: bool, starting: bool
) -> None:
    with TemporaryDirectory() as folder:
        run = Run(Path(folder))
        (run.folder / "ask").mkdir()
        for event in log:
            run.report(event)
        if starting:
            (run.folder / "ask" / "start").touch()
        with FileLock(run.lock) if locked else nullcontext():
            result = status(run)
            active = locked or starting
            assert (result in runs.ACTIVE) == active
            if active:  # it can be stopped, and is not started a second time
                with pytest.raises(UserError, match="already running"):
                    runs.start(run, executor=lambda _: None)
                return
        begun = [event.kind for event in log]
        last = next((kind for kind in reversed(begun) if kind in ("started", *runs.ENDS)), "started")
        assert result == runs.ENDS.get(last, "interrupted")
        runs.start(run, executor=lambda _: None)  # and from any other state it can be started again
        assert status(run) == "waiting"


def test_a_worker_that_says_nothing_for_ten_steps_does_not_respond(home: Path) -> None:
    run = make()
    with held(run.lock):
        started(run)
        for step in range(1, 5):
            time_of_it = datetime.now(UTC) + timedelta(seconds=20 * step)
            run.report(events.Step(step=step, loss=1, learning_rate=1, grad_norm=1, seconds=1, memory=1,
                                   time=time_of_it))  # fmt: skip
        view, last = runs.look(run), time_of_it.timestamp()
        assert not view.is_silent(last + 190)
        assert view.is_silent(last + 210)
    assert not runs.look(run).is_silent(last + 1000)


def test_a_worker_that_says_nothing_before_its_second_step_is_silent_after_ten_minutes(home: Path) -> None:
    run = make()
    begun = datetime.now(UTC)
    with held(run.lock):
        (run.folder / "ask" / "start").touch()
        run.report(events.Began(pid=7, time=begun))
        assert runs.look(run).state.pid == 7
        assert not runs.look(run).is_silent(begun.timestamp() + 10_000), "it waits for the device"
        (run.folder / "ask" / "start").unlink()
        for more in (events.Phase(name="x", done=0, total=1, time=begun),
                     events.Started(step=0, steps=9, pid=7, device="CPU", time=begun)):  # fmt: skip
            run.report(more)
            assert not runs.look(run).is_silent(begun.timestamp() + 590)
            assert runs.look(run).silence(begun.timestamp() + 610) == pytest.approx(610)
    assert not runs.look(run).is_silent(begun.timestamp() + 10_000), "nobody is at work"


def test_a_run_that_did_not_hear_that_it_is_to_stop_is_deaf(home: Path) -> None:
    run = make()
    with held(run.lock):
        started(run)
        assert not runs.look(run).is_unresponsive(time.time())
        control.stop(run)
        requested = (run.folder / "ask" / "stop").stat().st_mtime
        control.stop(run)
        assert (run.folder / "ask" / "stop").stat().st_mtime == requested, "its time runs from the first request"
        assert not runs.look(run).is_unresponsive(requested + 9)
        assert runs.look(run).is_unresponsive(requested + 11)
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
            assert other.wait(60) != 0


def test_a_clock_that_is_set_back_gives_no_time_below_nothing(home: Path) -> None:
    run = make()
    with held(run.lock):
        started(run)
        for step, hours in enumerate((0, 1, -24, -23), 1):
            run.report(events.Step(step=step, loss=1, learning_rate=1, grad_norm=1, seconds=1, memory=1,
                                   time=datetime.now(UTC) + timedelta(hours=hours)))  # fmt: skip
        view = runs.look(run)
        assert (view.status, view.state.step) == ("running", 4)
        assert (view.seconds_per_step, view.seconds_left) == (None, None)
        assert not view.is_silent(time.time())


def test_relative_paths_mean_the_same_everywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "base").mkdir()
    (home / "pictures").mkdir()
    (home / "datasets" / "known").mkdir()
    data = {"name": "x", "dataset": "pictures", "model": {"base": "base"}}
    made = runs.create(config.build(data)).config()
    assert (made.dataset, made.model.base) == (str(home / "pictures"), str(home / "base"))
    made = runs.create(config.build({"name": "x", "dataset": "known"})).config()
    assert (made.dataset, made.model.base) == ("known", "micro")


@pytest.mark.parametrize("name", ["../x", "absent", "a/b"])
def test_finding_what_is_not_there(home: Path, name: str) -> None:
    with pytest.raises(UserError):
        runs.find(name)


def test_deleting_moves_to_the_bin(home: Path) -> None:
    run = make()
    archive.delete(run)
    assert runs.all_runs() == []
    assert [path.name.startswith(run.id) for path in (home / "outputs" / ".bin").iterdir()] == [True]


def test_what_is_in_a_bin_stays_for_a_week(home: Path) -> None:
    """The start of the page's server looks; what was made long ago and deleted now is not old."""
    long_ago, hours = time.time() - 30 * 86400, 3600
    run, other = make("one"), make("two")
    folder = dataset.create("rin")
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    for path in (run.folder, other.folder, folder / "a.png", folder / "b.png"):
        os.utime(path, (long_ago, long_ago))
    archive.delete(run)
    archive.delete(other)
    places = [dataset.remove(folder / name) for name in ("a.png", "b.png")]
    deleted = archive.deleted()
    for path, age in ((deleted[0], 169 * hours), (deleted[1], 167 * hours), (places[0], 169 * hours)):
        os.utime(path, (time.time() - age, time.time() - age))
    launch.lock_home().release()
    assert archive.deleted() == deleted[1:]
    assert list((folder / ".bin").iterdir()) == places[1:]


def test_a_deleted_run_comes_back(home: Path) -> None:
    first, second = make("one"), make("two")
    archive.delete(first)
    archive.delete(second)
    assert archive.restore_last() == second
    assert archive.restore_last() == first
    with pytest.raises(UserError, match="no deleted run"):
        archive.restore_last()
    archive.delete(first)
    first.folder.mkdir()
    with pytest.raises(UserError, match="Another run has this name"):
        archive.restore_last()


def test_a_run_is_renamed_and_keeps_its_date(home: Path) -> None:
    run, other = make("rin"), make("mira")
    begun = run.id[:17]
    renamed = archive.rename(run, " red-hair ")
    assert renamed.id == f"{begun}_red-hair"
    assert renamed.config().name == "rin"
    assert archive.rename(renamed, "red-hair") == renamed
    for name in ("", "../x", "a b"):
        with pytest.raises(UserError):
            archive.rename(renamed, name)
    with held(other.lock), pytest.raises(UserError, match="still running"):
        archive.rename(other, "x")


def test_a_run_that_ended_gets_more_steps(home: Path) -> None:
    run = make()
    with pytest.raises(UserError, match="cannot be extended"):
        archive.extend(run, 5)
    started(run)
    run.report(events.Finished(step=9, export="rin.safetensors"))
    archive.extend(run, 5)
    assert run.config().training.steps == 14


def test_a_paused_run_rests_until_it_is_let_go_or_stopped(home: Path) -> None:
    from accelerate import Accelerator

    from trainer.training import distributed

    run, alone = make(), Accelerator(cpu=True)
    again = events.Started(step=3, steps=9, pid=1, device="CPU")
    moments: list[str] = []

    @contextmanager
    def paused() -> Iterator[None]:
        moments.append("paused")
        yield
        moments.append("goes on")

    assert distributed.requests(alone, run, again, paused) == set()
    assert not run.log.exists()
    assert not moments
    runs.pause(run)
    with held(run.lock):
        started(run)
        assert runs.look(run).paused
    with ThreadPoolExecutor(1) as thread:
        resting = thread.submit(distributed.requests, alone, run, again, paused)
        time.sleep(3 * runs.PAUSE_POLL)
        assert not resting.done()
        assert moments == ["paused"]
        runs.pause(run, go_on=True)
        resting.result(timeout=30)
        assert moments == ["paused", "goes on"]
        assert runs.look(run).state.step == 3
        runs.pause(run)
        runs.request(run, "stop")
        assert distributed.requests(alone, run, again, paused) == {"stop"}


def test_time_left_includes_what_lies_between_steps(home: Path) -> None:
    run = make()
    begin = events.Started(step=0, steps=100, pid=1, device="CPU")
    log = [begin] + [
        events.Step(
            step=n,
            loss=1,
            learning_rate=1,
            grad_norm=1,
            seconds=0.1,
            memory=1,
            time=begin.time.replace(microsecond=0, second=n),
        )
        for n in range(1, 11)
    ]
    state = events.fold(events.State(), log)
    assert runs.View(run, "running", state).seconds_left == pytest.approx(90)
    assert runs.View(run, "running", state).seconds_left == pytest.approx(90)
    assert runs.View(run, "stopped", state).seconds_left is None
    assert runs.View(run, "stopped", state).seconds_left is None


def test_a_log_tail(home: Path) -> None:
    run = make()
    assert runs.log_tail(run) == ""
    (run.folder / "worker.log").write_text("".join(f"line {n}\n" for n in range(900)))
    assert runs.log_tail(run, 2) == "line 898\nline 899"


def test_no_prior_pictures_stay_none_where_there_are_no_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "empty"))
    (tmp_path / "rin").mkdir()
    run = runs.create(config.build({"name": "rin", "dataset": str(tmp_path / "rin")}), tmp_path / "run")
    assert run.config().regularization.dataset == ""


def test_how_long_a_step_takes_is_known_from_a_run_of_its_kind(home: Path) -> None:
    settings = config.build({"name": "rin", "dataset": "rin"})
    assert runs.find_similar(settings) is None

    def taken() -> float | None:
        similar = runs.find_similar(settings)
        return similar.seconds_per_step if similar else None

    run = make()
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    for step in range(1, 11):
        run.report(
            events.Step(
                step=step, loss=1.0, learning_rate=0.1, grad_norm=1.0, seconds=0.1, memory=1,
                time=begun + timedelta(seconds=2 * step),
            )
        )  # fmt: skip
    assert taken() == pytest.approx(2)
    other = config.build({"name": "rin", "dataset": "rin", "training": {"batch_size": 2}})
    assert runs.find_similar(other) is None
    newer = runs.create(settings, run.folder.parent / "9999_newer")
    newer.config_file.write_text("broken")
    assert taken() == pytest.approx(2), "one that cannot be read is skipped"
