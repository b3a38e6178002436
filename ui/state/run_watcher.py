"""Watch runs for the page. Views are cached, so that only new events are read; stamps tell when to redraw."""

import threading
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from trainer import foreign_text, paths, runs
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, View, queue


class RunWatcher:
    """The latest view of each run, shared by all pages of this server. Everything in it is also on disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[Path, View] = {}
        self._ended: dict[Path, int] = {}  # size of the log of a run that was seen to be over
        self._datasets: dict[Path, str] = {}

    def view(self, run: Run) -> View:
        """Return the current view of a run; only new events are read, and none of a run that has ended."""
        with self._lock:
            known = self._views.get(run.folder)
            is_over = known and known.status not in runs.ACTIVE and not _is_started(run)
            if known and is_over and known.offset == runs.view.size(run.log):
                return known
            view = runs.look(run, known)
            self._views[run.folder] = view
        return view

    def find(self, run_id: str | None) -> View | None:
        """Return the view of a run by its name; None if there is no such run."""
        try:
            return self.view(runs.find(run_id)) if run_id else None
        except UserError:
            return None

    def views(self) -> list[View]:
        """Return views of all runs, the newest first."""
        return [self.view(run) for run in runs.all_runs()]

    def active(self) -> View | None:
        """Return the newest run that trains now, else the first in the queue, else None."""
        return next(iter(self._active(runs.all_runs())), None)

    def default(self, project: str = "") -> str:
        """Return the id of the run to show first: the active one, else the newest of a project or of all, else ""."""
        active = self.active()
        if active:
            return active.run.id
        return next((run.id for run in self.runs_of(project)), "")

    def runs_of(self, project: str) -> list[Run]:
        """Return the runs on a project, or all if it is "", the newest first; and whatever trains now."""
        return self.runs_and_active(project)[0]

    def runs_and_active(self, project: str) -> tuple[list[Run], list[View]]:
        """Return `runs_of`, and all runs that train now or else the first in the queue, from one look at all runs."""
        listed = runs.all_runs()
        active = self._active(listed)
        training = [view.run for view in active]
        if project:
            listed = [run for run in listed if self._dataset(run) == project or run in training]
        return listed, active

    def _active(self, listed: Sequence[Run]) -> list[View]:
        """Return the runs that train now, the newest first, else the first in the queue.

        The logs of runs that are over are not read: there may be thousands of them.
        """
        views = [view for view in map(self.view, filter(self._may_be_active, listed)) if view.status in runs.ACTIVE]
        return [view for view in views if view.status == "running"] or views[-1:]

    def _may_be_active(self, run: Run) -> bool:
        size = runs.view.size(run.log)
        if _is_started(run):
            return True
        if self._ended.get(run.folder) == size:
            return False
        is_locked = runs.view.is_locked(run.lock)
        if not is_locked:
            self._ended[run.folder] = size
        return is_locked

    def _dataset(self, run: Run) -> str:
        """Return the dataset of a run, "" if its settings cannot be read; it never changes, and need not be checked."""
        with self._lock:
            if run.folder not in self._datasets:
                try:
                    self._datasets[run.folder] = _read_dataset(run.config_file)
                except (OSError, UnicodeDecodeError, foreign_text.ForeignTextError):
                    return ""
            return self._datasets[run.folder]


def _read_dataset(settings: Path) -> str:
    """Read the dataset from settings: from what stands above their first table, unless they were written by hand.

    Raises:
        ForeignTextError: they are not TOML.
        OSError, UnicodeDecodeError: they cannot be read.
    """
    text = settings.read_text(encoding="utf-8")
    with suppress(foreign_text.ForeignTextError):
        if name := foreign_text.parse_toml(text.partition("\n[")[0]).get("dataset"):
            return str(name)
    return str(foreign_text.parse_toml(text).get("dataset", ""))


def stamp(view: View | None) -> tuple[Hashable, ...]:
    """Return a value that changes when what the page shows of a run changes."""
    if view is None:
        return ()
    folder, now = view.run.folder, time.time()
    commands = tuple(sorted(path.name for path in (folder / "ask").glob("*")))
    position = queue.position(view.run) if view.status == "waiting" else 0
    silent = view.is_unresponsive(now), view.silence(now) // 60
    return view.run.id, view.status, view.offset, commands, position, silent, runs.view.size(view.run.worker_log)


def label(run: Run) -> str:
    """Return the label of a run, such as `rin, 24 Nov 14:05`, from the name of its folder."""
    begun = _begun(run)
    if not begun:
        return run.id
    return _("{name}, {begun.day} {begun:%b %H:%M}", name=name(run), begun=begun)


def name(run: Run) -> str:
    """Return the name of a run's adapter, which is the end of that of its folder."""
    if not _begun(run):
        return run.id
    return run.id[18:]


def _begun(run: Run) -> datetime | None:
    with suppress(ValueError):
        return datetime.strptime(run.id[:17], "%Y-%m-%d_%H%M%S")
    return None


def log_tail(run: Run) -> str:
    """Return the last lines of the worker's log, without the paths of this machine."""
    text = runs.log_tail(run)
    for folder in (paths.home(), paths.shared(), paths.CODE, Path.home()):
        name = "~" if folder == Path.home() else "limner"
        text = text.replace(str(folder.resolve()), name).replace(str(folder), name)
    return text


def _is_started(run: Run) -> bool:
    return (run.folder / "ask" / "start").exists()
