"""Run queue: one worker per run, one run on the device at a time, first come first served. Built on file locks."""

import time
from pathlib import Path

from filelock import FileLock, Timeout

from trainer import paths, runs, storage
from trainer.errors import UserError
from trainer.runs import Run, StopRequestedError


def device_lock() -> Path:
    """Return the lock held by the worker that uses the device; it is shared by all users of a server."""
    return paths.shared() / "outputs" / ".device.lock"


def lock_run(run: Run) -> FileLock:
    """Take the lock of a run for the rest of this process's life.

    Raises:
        UserError: another worker has it.
    """
    # `runs.is_locked` takes the lock for an instant, hence the timeout.
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise UserError("The run {id!r} is already running.", "Watch it, or stop it first.", id=run.id) from None
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / "start").touch()
    return lock


def wait_for_device(run: Run) -> FileLock:
    """Wait until it is this run's turn for the device: one run at a time, the oldest waiting one first.

    Among runs of different users, which wait in workspaces of their own, any may be the next.

    Raises:
        StopRequestedError: the run was asked to stop while it waited.
    """
    device_lock().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(device_lock())
    while True:
        if not _is_preceded(run):
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                pass
            else:
                storage.remove(run.folder / "ask" / "start")
                return lock
        if run.take_request("stop"):
            raise StopRequestedError
        time.sleep(0.3)


def _is_preceded(run: Run) -> bool:
    """Tell whether a living worker of an older run waits for the device."""
    if run.folder.parent.resolve() != paths.outputs().resolve():
        return False
    return any(runs.is_locked(other.lock) for other in _older_waiting(run))


def _older_waiting(run: Run) -> list[Run]:
    return [other for other in runs.all_runs() if other.id < run.id and runs.look(other).status == "waiting"]


def position(run: Run) -> int:
    """Return the position of a waiting run in the queue, 1 = next; 0 if it has the device or can take it at once."""
    if not (run.folder / "ask" / "start").exists():
        return 0
    older = len(_older_waiting(run))
    if not older and not runs.is_locked(device_lock()):
        return 0
    return older + 1
