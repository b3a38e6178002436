"""Snapshots of runs: status, progress and pace, derived from the log and the lock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import events
from trainer.runs.run import ACTIVE, PAUSE, Run, Status, all_runs

MAX_COMPARED = 20  # newest runs that are searched for a similar one
START_GRACE = 30.0  # seconds in which a worker that was just started must take its lock
SILENCE = 60.0  # seconds that any worker may be silent between steps, for checkpoints and previews
INITIAL_SILENCE = 600.0  # the same before two steps are done
STOP_TIMEOUT = 10.0  # seconds after which a run that did not respond to a stop request may be killed
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
        return _seconds_per_step(self.state.pace)

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
        clock_was_set_back = pace is None and len(self.state.pace) > 1
        if is_waiting or not updated or clock_was_set_back:
            return 0.0
        limit = INITIAL_SILENCE if pace is None else max(SILENCE, 10 * pace)
        silence = now - updated.timestamp()
        return silence if silence > limit else 0.0

    def is_silent(self, now: float) -> bool:
        """Tell whether at this Unix time a worker with the device has been silent for suspiciously long."""
        return self.silence(now) > 0

    def is_unresponsive(self, now: float) -> bool:
        """Tell whether at this Unix time the run has ignored a stop request for too long, or is silent."""
        try:
            requested = (self.run.folder / "ask" / "stop").stat().st_mtime
        except FileNotFoundError:
            return self.is_silent(now)
        return self.status in ACTIVE and now - requested > STOP_TIMEOUT


def _seconds_per_step(times: Sequence[tuple[int, float]]) -> float | None:
    """Return the seconds per step between the first and the last (step, Unix time).

    None if there are fewer than two, or the clock was set back between them.
    """
    if len(times) < 2 or times[-1][1] < times[0][1]:
        return None
    (first, start), (last, end) = times[0], times[-1]
    return (end - start) / max(1, last - first)


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds this lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def look(run: Run, before: View | None = None) -> View:
    """Return a snapshot of a run. Given an earlier one of it, only new events are read from the log."""
    state, offset = events.State(), 0
    if before and before.run == run:
        state, offset = before.state, before.offset
    # The lock is checked first: a worker that ends in between has written its last event by then.
    locked = is_locked(run.lock)
    new_events, offset = events.read(run.log, offset)
    state = events.fold(state, new_events)
    return View(run, _status(run, state, locked), state, offset)


def _status(run: Run, state: events.State, locked: bool) -> Status:
    start_request = run.folder / "ask" / "start"  # there from the start until the worker has the device
    if locked:
        return "running" if state.started and not state.end and not start_request.exists() else "waiting"
    if start_request.exists():
        age = abs(time.time() - start_request.stat().st_mtime)  # a clock that was set back must not prolong it
        if age < START_GRACE:
            return "waiting"
    return ENDS.get(state.end, "interrupted")


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
