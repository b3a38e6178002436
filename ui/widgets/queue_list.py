"""The list of runs that wait for the device, with buttons that put them in another order (see queue.js)."""

from collections.abc import Sequence
from pathlib import PurePath

from trainer.errors import UserError
from trainer.runs import Run
from ui.state.run_watcher import label
from ui.templates import render


def draw(waiting: Sequence[Run]) -> str:
    """Render the waiting runs in their order; "" if there are none."""
    if not waiting:
        return ""
    runs = [{"id": run.id, "name": label(run), "base": _base(run), "on_hold": run.on_hold} for run in waiting]
    return render("queue.html", waiting=runs)


def _base(run: Run) -> str:
    try:
        return PurePath(run.config().model.base).name
    except (UserError, OSError):  # its settings cannot be read
        return ""
