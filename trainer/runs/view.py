"""Snapshots of runs: status, progress and pace, derived from the log and the lock."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from trainer import foreign_text, storage
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import events
from trainer.runs.run import ACTIVE, PAUSE, PROCESS, Run, Status, all_runs

MAX_COMPARED = 20  # newest runs that are searched for a similar one
START_GRACE = 30.0  # seconds in which a process that nobody has noted must take its lock
MEASURED_TO = 5.0  # seconds; the start time of a process follows the clock if that is set
SILENCE = 60.0  # seconds that any worker may be silent between steps, for checkpoints and previews
INITIAL_SILENCE = 600.0  # the same before two steps are done
STOP_TIMEOUT = 10.0  # seconds after which a run that did not respond to a stop request may be killed
_PROBING = threading.Lock()
STATUS_LABELS: dict[Status, str] = {
    "waiting": _("Waiting"),
    "running": _("Training"),
    "interrupted": _("Interrupted"),
    "finished": _("Done"),
    "stopped": _("Stopped"),
    "failed": _("Failed"),
}
ENDS: dict[str, Status] = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class View:
    """Snapshot of a run: status, folded state, log offset."""

    run: Run
    status: Status
    state: events.State
    offset: int = 0

    @property
    def paused(self) -> bool:
        """True if the run is paused."""
        return self.status == "running" and (self.run.folder / "ask" / PAUSE).exists()

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds per recent step, previews included; None if unknown."""
        pace = self.state.pace
        if len(pace) < 2:
            return None
        (first, start), (last, end) = pace[0], pace[-1]
        return (end - start) / max(1, last - first)

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace of the last steps; None if unknown."""
        pace = self.seconds_per_step
        if self.status != "running" or self.paused or pace is None:
            return None
        return (self.state.steps - self.state.step) * pace

    def silence(self, now: float) -> float:
        """Return for how many seconds, at this Unix time, a worker with the device has reported nothing.

        0 unless that is suspiciously long: more than the time of ten steps and a minute, or ten minutes before two
        steps are done, when a base model may be read from a slow disk.
        """
        pace, updated = self.seconds_per_step, self.state.updated
        is_waiting = self.status not in ACTIVE or self.paused or (self.run.folder / "ask" / "start").exists()
        if is_waiting or not updated:
            return 0.0
        limit = INITIAL_SILENCE if pace is None else max(SILENCE, 10 * pace)
        silence = now - updated.timestamp()
        return silence if silence > limit else 0.0

    def is_silent(self, now: float) -> bool:
        """Return True if at this Unix time a worker with the device has been silent for suspiciously long."""
        return self.silence(now) > 0

    def is_unresponsive(self, now: float) -> bool:
        """Return True if at this Unix time the run has ignored a stop request for too long, or is silent."""
        try:
            requested = (self.run.folder / "ask" / "stop").stat().st_mtime
        except OSError:
            return self.is_silent(now)
        return self.status in ACTIVE and now - requested > STOP_TIMEOUT


def is_locked(path: Path) -> bool:
    """Return True if a living process holds this lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    with _PROBING:  # or another thread takes this one's attempt for the lock of a worker
        try:
            storage.take_lock(lock, timeout=0)
        except Timeout:
            return True
        except OSError:  # the run was deleted or renamed at this moment, or belongs to another user
            return False
        lock.release()
    return False


def size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none, or it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def look(run: Run, before: View | None = None) -> View:
    """Return a snapshot of a run. Given an earlier one of it, only new events are read from the log."""
    state, offset = events.State(), 0
    if before and before.run == run and size(run.log) >= before.offset:  # a shorter log is another one
        state, offset = before.state, before.offset
    # The lock is checked first: a worker that ends in between has written its last event by then.
    locked = is_locked(run.lock)
    new_events, offset = events.read(run.log, offset)
    state = events.fold(state, new_events)
    return View(run, _status(run, state, locked), state, offset)


def check_ended(run: Run) -> None:
    """Check that nobody works on a run.

    Raises:
        UserError: it is active.
    """
    if look(run).status in ACTIVE:
        raise UserError("This run is still running.", "Stop it first, or wait until it has ended.")


def _status(run: Run, state: events.State, locked: bool) -> Status:
    start_request = run.folder / "ask" / "start"  # there from the start until the worker has the device
    if locked:
        return "running" if state.started and not state.end and not start_request.exists() else "waiting"
    if start_request.exists() and (starter(run) or _is_fresh(run, start_request)):
        return "waiting"
    return ENDS.get(state.end, "interrupted")


def _is_fresh(run: Run, start_request: Path) -> bool:
    """Return True for a start whose process is not noted yet, or was not, as a person starts it in a terminal."""
    if (run.folder / "ask" / PROCESS).exists():
        return False
    age = abs(time.time() - start_request.stat().st_mtime)  # a clock that was set back must not prolong it
    return age < START_GRACE


def starter(run: Run) -> psutil.Process | None:
    """Return the process that was started for a run, if it lives: until it has the lock, the run is starting."""
    try:
        note = foreign_text.read_json(run.folder / "ask" / PROCESS)
        process = psutil.Process(int(note["pid"]))
        is_same = abs(process.create_time() - float(note["created"])) < MEASURED_TO
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, TypeError, KeyError, OverflowError, psutil.Error):
        pass
    return None


def find_similar(config: TrainConfig) -> View | None:
    """Return the newest run on this machine whose steps take as long as with these settings; None without one."""
    for run in all_runs()[:MAX_COMPARED]:
        try:
            if run.cluster or _cost(run.config()) != _cost(config):
                continue
        except UserError:  # of an older version, or broken
            continue
        view = look(run)
        if view.seconds_per_step:
            return view
    return None


def _cost(config: TrainConfig) -> tuple[object, ...]:
    """Return the settings that the time of a step depends on."""
    training, adapter = config.training, config.adapter
    return (
        config.model.base,
        config.model.weights,
        training.resolutions,
        training.batch_size,
        training.gradient_accumulation,
        training.wanted_devices,
        training.text_encoder,
        adapter.kind,
        adapter.targets,
        config.preservation.share,
    )
