"""The worker of a run, a process of its own: lock the run, wait for the device, train, and report how it ended."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from trainer import config, runs, storage
from trainer.config import TrainConfig, adjustments
from trainer.errors import UserError, is_out_of_memory
from trainer.i18n import say
from trainer.runs import Run, StopRequestedError, ending, events, queue
from trainer.training import malloc


def work(run: Run) -> int:
    """Do one run in this process: hold its lock, wait for the device, train, and report how it ended."""
    malloc.tune()
    if os.environ.get("RANK", "0") != "0":
        from trainer.train import follow

        follow(Run(run.folder, leads=False))
        return 0
    lock = queue.hold(run)
    storage.sweep(run.folder, *(one for one in run.folder.iterdir() if one.is_dir()))
    signal.signal(signal.SIGTERM, lambda *_: runs.ask(run, "stop"))
    if run.listener:
        ending.heed_interrupts(run)
    settings = None
    try:
        run.report(events.Began(pid=os.getpid()))
        task = str(config.load_partial(run.config_file).get("task", "train"))
        settings = run.config() if task == "train" else None
        device = queue.wait_for_device(run)
        try:
            run.report(events.Began(pid=os.getpid()))
            TASKS[task](run)
        finally:
            device.release()
    except StopRequestedError:
        run.report(events.Stopped(step=runs.look(run).state.step))
    except Exception as error:  # whatever comes becomes an event, so that the page can tell it
        told = explain(error, settings)
        print(traceback.format_exc(), file=sys.stderr)
        with suppress(OSError):  # the disk may be full: without this event the run counts as interrupted
            run.report(events.Failed(
                message=told.message, remedy=told.remedy, change=told.change, traceback=traceback.format_exc()
            ))  # fmt: skip
        return 2 if isinstance(error, UserError) else 1
    finally:
        (run.folder / "ask" / "start").unlink(missing_ok=True)  # there still if it ended before it had the device
        lock.release()
    return 0


def _train_run(run: Run) -> None:
    settings = run.config()
    from trainer.train import follow, train
    from trainer.training import distributed  # imports torch, which a waiting run does without

    try:
        with distributed.followers(run, distributed.wanted(settings), follow):
            train(settings, run)
    except distributed.NotJoinedError:
        if settings.training.devices or "WORLD_SIZE" in os.environ:  # asked for, here or by a launcher
            raise
        traceback.print_exc()
        told = say("No other process could be started to share the work (the log says why); this one does it alone.")
        run.report(events.Warned(message=told))
        train(settings, run)


def _caption_run(run: Run) -> None:
    from trainer.captioning.models import caption

    caption(run)


TASKS: dict[str, Callable[[Run], None]] = {"train": _train_run, "caption": _caption_run}


def explain(error: Exception, settings: TrainConfig | None = None) -> UserError:
    """Explain an error for people: what went wrong, what to do and, given the settings, what to change in them."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("The disk is full.", "Make room, then resume: the last checkpoint is kept.")
    if isinstance(error, PermissionError):
        return UserError("A folder cannot be written to.", "Check its permissions, then resume.")
    if is_out_of_memory(error):
        change = adjustments.smaller(settings) if settings else {}
        return UserError(
            "There is not enough memory.", "Lower the resolution or the batch size, then start again.", change
        )
    return UserError(
        "Something unexpected went wrong ({kind}).", "The log has the details; resuming may help.",
        kind=type(error).__name__,
    )  # fmt: skip
