"""Worker of a run, in its own process: lock the run, wait for its cards, train, and report the end."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer import captioning, config, extension, processes, runs, storage
from trainer.config import TrainConfig, adjustments
from trainer.errors import UserError, explain_disk, is_out_of_memory
from trainer.machine import nvidia, other_cards, pace
from trainer.runs import Run, StopRequestedError, cards, control, events, queue
from trainer.runs.run import PROCESS

RETRIED = "retried"  # a file in the requests of a run: the step at which its device failed


def work(run: Run, *, may_retry: bool = True) -> int:
    """Work on one run in this process, or in a new one if its device fails and it may; return the exit code."""
    processes.tune_malloc()
    if os.environ.get("RANK", "0") != "0":
        from trainer.train import follow

        follow(Run(run.folder, is_main=False))
        return 0
    lock = queue.lock_run(run)
    # Other processes write into `ask`.
    own = [folder for folder in run.folder.iterdir() if folder.is_dir() and folder.name != "ask"]
    storage.remove_leftovers(run.folder, *own)
    signal.signal(signal.SIGTERM, lambda *_: control.terminate(run))
    if run.listener:
        control.stop_on_interrupt(run)
    settings, again = None, False
    try:
        run.report(events.Began(pid=os.getpid()))
        task = str(config.load_partial(run.config_file).get("task", "train"))
        settings = run.config() if task == "train" else None
        if address := run.cluster:
            return extension.place(address)(run, address)
        _work_on_cards(run, TASKS.get(task) or extension.job(task), settings)
    except StopRequestedError:
        run.report(events.Stopped(step=runs.look(run).state.step))
    except Exception as error:  # any error becomes an event, so that the page can show it
        if again := may_retry and _is_worth_retrying(run, error):
            traceback.print_exc()
            run.warn("The device failed; the run goes on in a new process.")
            return 1
        explained, log = explain(error, settings), traceback.format_exc()
        print(explained.message if isinstance(error, UserError) else log, file=sys.stderr)
        with suppress(OSError):  # the disk may be full: without this event the run counts as interrupted
            run.report(
                events.Failed(
                    message=explained.message,
                    remedy=explained.remedy,
                    template=explained.template,
                    change=explained.change,
                    traceback=log,
                )
            )
        return 2 if isinstance(error, UserError) else 1
    finally:
        storage.remove(run.folder / "ask" / "start")  # still there if it ended before it had its cards
        if not again:
            for note in (RETRIED, PROCESS):
                storage.remove(run.folder / "ask" / note)
        lock.release()
        if again:
            (run.folder / "ask" / "start").touch()
            control.spawn(run)
        else:
            _announce_end(run)
    return 0


def _announce_end(run: Run) -> None:
    """Have extensions take note that a run has ended, which an error of theirs does not change."""
    try:
        for take_note in extension.panels("run-ended"):
            take_note(run)
    except Exception:
        traceback.print_exc()


def _is_worth_retrying(run: Run, error: Exception) -> bool:
    """Return True if a run goes on by itself: its device failed, unless it did that before and came no further.

    A launcher, or a person who watches in a terminal, decides that for themselves.
    """
    if isinstance(error, UserError) or run.listener or "WORLD_SIZE" in os.environ:
        return False
    from trainer import devices  # imports torch, which any other error than these follows

    if not devices.is_fault(error):
        return False
    step, mark = runs.look(run).state.step, run.folder / "ask" / RETRIED
    if mark.exists() and int(mark.read_text(encoding="utf-8")) >= step:
        return False
    storage.write(mark, str(step))
    return True


def wait_for_run() -> Run | None:
    """Import what training needs, then return the run whose folder standard input names; None if it ends before that.

    From then on nothing connects this process with the one that started it: it writes to the log of the run.
    """
    processes.tune_malloc()
    from trainer import devices, train  # noqa: F401 - imports torch and the rest

    with suppress(OSError):  # the disk may be full
        pace.note(devices.speeds())
    folder = sys.stdin.readline().rstrip("\n")
    if not folder:
        return None
    run = Run(Path(folder))
    with run.worker_log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    return run


def _work_on_cards(run: Run, task: Callable[[Run], None], settings: TrainConfig | None) -> None:
    """Wait for the cards that a run asks for, and work on it while this process sees only these.

    Processes of a launcher choose among all cards that they see, so that a run of theirs takes these.
    """
    launched = "WORLD_SIZE" in os.environ
    all_numbers = tuple(card.number for card in cards.known())
    if launched:
        wish = cards.Wish(len(all_numbers), all_numbers)
    elif task is _caption_run and captioning.load(run).server:
        wish = cards.Wish(0)  # nothing is computed here
    else:
        wish = cards.wish(settings)
    claim = queue.wait_for_cards(run, wish)
    try:
        numbers = tuple(card.number for card in claim.cards) if len(all_numbers) > 1 else ()
        run.report(events.Began(pid=os.getpid(), cards=numbers))
        with cards.visible(() if launched else claim.cards):
            task(run)
    finally:
        claim.release()


def _train_run(run: Run) -> None:
    settings = run.config()
    from trainer import devices  # imports torch, which a waiting run does not need
    from trainer.train import follow, train
    from trainer.training import ranks

    if not devices.count() and (advice := nvidia.advice() or other_cards.advice()):
        run.warn(advice)
    processes = ranks.wanted(settings)
    if processes > 1 and "WORLD_SIZE" not in os.environ and not ranks.can_connect():
        run.warn("On this machine processes cannot share the work; this one trains alone. The log says why.")
        processes = 1
    try:
        with ranks.followers(run, processes, follow):
            train(settings, run)
    except ranks.NotJoinedError:
        if settings.training.wanted_devices or "WORLD_SIZE" in os.environ:  # required by the settings or a launcher
            raise
        traceback.print_exc()
        run.warn("No other process could be started to share the work; this one trains alone. The log says why.")
        train(settings, run)


def _caption_run(run: Run) -> None:
    from trainer.captioning.task import caption

    caption(run)


TASKS: dict[str, Callable[[Run], None]] = {"train": _train_run, "caption": _caption_run}


def explain(error: Exception, settings: TrainConfig | None = None) -> UserError:
    """Explain an error to people: what went wrong, what to do and, given the settings, what to change in them."""
    if isinstance(error, UserError):
        return error
    if explained := explain_disk(error):
        return explained
    if isinstance(error, PermissionError):
        return UserError(
            "A file or folder cannot be written to.",
            "Check its permissions and close programs that have it open, then resume.",
        )
    if is_out_of_memory(error):
        change = adjustments.lower_resolution(settings) if settings else {}
        return UserError(
            "There is not enough memory.", "Lower the resolution or the batch size, then start again.", change
        )
    return UserError(
        "Something unexpected went wrong ({kind}).",
        "The log has the details; resuming may help.",
        kind=type(error).__name__,
    )
