"""Run queue: one worker per run, one run on the device at a time, first come first served. Built on file locks."""

import time
from pathlib import Path

from filelock import FileLock, Timeout

from trainer import paths, runs
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError


def device_lock() -> Path:
    """Held by the worker that uses the device; of several people's workers, too, there is one at a time."""
    return paths.shared() / "outputs" / ".device.lock"


def hold(run: Run) -> FileLock:
    """Take the lock of a run for the rest of this process's life.

    Raises:
        UserError: another worker has it.
    """
    # A look at the lock takes it for an instant, hence the patience.
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise UserError("The run {id!r} is at work already.", "Watch it, or stop it first.", id=run.id) from None
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / "start").touch()
    return lock


def wait_for_device(run: Run) -> FileLock:
    """Wait until it is this run's turn for the device: one run at a time, the oldest waiting one first.

    Of several people's runs, each waiting in a home of its own, any may be the next.

    Raises:
        StopRequestedError: somebody asked the run to stop while it waited.
    """
    device_lock().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(device_lock())
    while True:
        if not _older_waiting(run):
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                pass
            else:
                (run.folder / "ask" / "start").unlink(missing_ok=True)
                return lock
        if run.asked("stop"):
            raise StopRequestedError
        time.sleep(0.3)


def _older_waiting(run: Run) -> bool:
    if run.folder.parent.resolve() != paths.outputs().resolve():
        return False
    return any(
        other.id < run.id and runs.is_locked(other.lock) and runs.look(other).status == "waiting"
        for other in runs.every()
    )


def place(run: Run) -> int:
    """Place of a waiting run in the queue, 1 = next; 0 if it has the device, or nobody keeps it from taking it."""
    if not (run.folder / "ask" / "start").exists():
        return 0
    older = sum(1 for other in runs.every() if other.id < run.id and runs.look(other).status == "waiting")
    return older + 1 if older or runs.is_locked(device_lock()) else 0
