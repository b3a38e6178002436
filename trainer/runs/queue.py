"""Run queue: one worker per run, one run on the device at a time, first come first served. Built on file locks.

The order can be changed: `outputs/.queue.json` lists runs by name, and those that are not in it come after them. A run
on hold keeps its place and lets others pass.
"""

import json
import time
from pathlib import Path

from filelock import FileLock, Timeout

from trainer import paths, runs, storage
from trainer.errors import UserError
from trainer.runs.run import HOLD, Run, StopRequestedError

ORDER = ".queue.json"
Place = tuple[int, str]


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
    """Wait until it is this run's turn for the device: one run at a time, in the order of `waiting`.

    Among runs of different users, which wait in workspaces of their own, any may be the next.

    Raises:
        StopRequestedError: the run was asked to stop while it waited.
    """
    device_lock().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(device_lock())
    while True:
        if not run.on_hold and not _is_preceded(run):
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
    """Tell whether a living worker of a run further ahead waits for the device."""
    if run.folder.parent.resolve() != paths.outputs().resolve():
        return False
    return any(runs.is_locked(other.lock) for other in _ahead(run))


def _ahead(run: Run) -> list[Run]:
    """Return the waiting runs that get the device before this one."""
    order = _order()
    return [other for other in waiting() if _place(other, order) < _place(run, order) and not other.on_hold]


def waiting() -> list[Run]:
    """Return the runs that wait for the device, also those on hold, in the order of the queue."""
    started = [run for run in runs.all_runs() if (run.folder / "ask" / "start").exists()]
    order = _order()
    return sorted((run for run in started if runs.look(run).status == "waiting"), key=lambda run: _place(run, order))


def line() -> list[Run]:
    """Return the waiting runs but for one that can take the device at once."""
    queue = waiting()
    if queue and not runs.is_locked(device_lock()):
        first = next((run for run in queue if not run.on_hold), None)
        return [run for run in queue if run != first]
    return queue


def position(run: Run) -> int:
    """Return the position of a waiting run in the queue, 1 = next; 0 if it has the device or can take it at once."""
    if not (run.folder / "ask" / "start").exists():
        return 0
    ahead = len(_ahead(run))
    if not ahead and not runs.is_locked(device_lock()):
        return 0
    return ahead + 1


# Change the order -----------------------------------------------------------------------------------------------


def move(run: Run, place: int) -> None:
    """Give a waiting run another place among all that wait, 1 = the first.

    Raises:
        UserError: it does not wait.
    """
    with FileLock(paths.outputs() / f"{ORDER}.lock"):
        queue = waiting()
        if run not in queue:
            raise _not_waiting()
        queue.remove(run)
        queue.insert(max(0, place - 1), run)
        storage.write(paths.outputs() / ORDER, json.dumps([other.id for other in queue]))


def hold(run: Run, *, release: bool = False) -> None:
    """Keep a waiting run from taking the device until it is released.

    Raises:
        UserError: it does not wait.
    """
    if release:
        storage.remove(run.folder / "ask" / HOLD)
    elif runs.look(run).status == "waiting":
        (run.folder / "ask" / HOLD).touch()
    else:
        raise _not_waiting()


def _not_waiting() -> UserError:
    return UserError("This run does not wait for the device.", "Pause or stop it instead, or start it again.")


def _place(run: Run, order: dict[str, int]) -> Place:
    return order.get(run.id, len(order)), run.id


def _order() -> dict[str, int]:
    """Return the places of the runs that waited when one was moved; {} if none was, or the file is damaged."""
    try:
        names = json.loads((paths.outputs() / ORDER).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): place for place, name in enumerate(names)} if isinstance(names, list) else {}
