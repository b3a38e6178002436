"""Watch the run that a page shows, and redraw it when it changed. Views are cached so that only new events are read."""

import threading
import time
from collections.abc import Hashable
from datetime import datetime
from pathlib import Path

from trainer import paths, runs
from trainer.errors import UserError
from trainer.i18n import say
from trainer.runs import Run, View, queue


class Watch:
    """The latest view of each run, shared by all pages of this server. It holds nothing that is not on disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[Path, View] = {}

    def look(self, run: Run) -> View:
        """The run as it is now; only what is new in its log is read, and nothing of a run that rests."""
        with self._lock:
            known = self._views.get(run.folder)
            if known and known.status not in runs.ACTIVE and known.offset == _size(run.log) and not _is_started(run):
                return known
            view = runs.look(run, known)
            self._views[run.folder] = view
        return view

    def find(self, run_id: str | None) -> View | None:
        """The view of a run by its name; None if there is no such run."""
        try:
            return self.look(runs.find(run_id)) if run_id else None
        except UserError:
            return None

    def every(self) -> list[View]:
        """Views of all runs, the newest first."""
        return [self.look(run) for run in runs.all_runs()]

    def active(self) -> View | None:
        """The run that trains now, else the one that waits for it, else None."""
        views = [view for view in self.every() if view.status in runs.ACTIVE]
        return next((view for view in views if view.status == "running"), views[-1] if views else None)

    def default(self) -> str:
        """The run to show first: the active one, else the newest, else none."""
        active = self.active()
        if active:
            return active.run.id
        newest = runs.all_runs()
        return newest[0].id if newest else ""


def stamp(view: View | None) -> tuple[Hashable, ...]:
    """Changes when what is shown of a run changes."""
    if view is None:
        return ()
    asks = tuple(sorted(path.name for path in (view.run.folder / "ask").glob("*")))
    place = queue.position(view.run) if view.status == "waiting" else 0
    now = time.time()
    silent = view.is_unresponsive(now), view.silence(now) // 60
    return view.run.id, view.status, view.offset, asks, place, silent, _size(view.run.folder / "worker.log")


def label(run: Run) -> str:
    """A run's name for people: `rin, 24 Nov 14:05` from the folder's name."""
    stamp, name = run.id[:17], run.id[18:]
    try:
        begun = datetime.strptime(stamp, "%Y-%m-%d_%H%M%S")
    except ValueError:
        return run.id
    return say("{name}, {begun.day} {begun:%b %H:%M:%S}", name=name, begun=begun)


def log_tail(run: Run) -> str:
    """The last lines of the worker's log, without where things lie on this machine."""
    text = runs.log_tail(run)
    for folder in (paths.home(), paths.shared(), paths.CODE, Path.home()):
        shown = "~" if folder == Path.home() else "limner"
        text = text.replace(str(folder.resolve()), shown).replace(str(folder), shown)
    return text


def _is_started(run: Run) -> bool:
    return (run.folder / "ask" / "start").exists()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
