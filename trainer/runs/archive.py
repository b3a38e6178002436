"""Runs that have ended: given more steps, renamed, moved to the bin, brought back; and what their files are called."""

import re
import time
from datetime import datetime
from pathlib import Path

from trainer import paths, runs, storage
from trainer.errors import UserError
from trainer.runs import Run

BEGUN = re.compile(r"\d{4}-\d{2}-\d{2}_\d{6}_")  # what a run's name begins with


def known_as(adapter: Path) -> str:
    """An adapter file by its name and its run's, without where on this machine it lies."""
    folder = adapter.parents[2] if adapter.parent.parent.name == "checkpoints" else adapter.parent
    if not (folder / "config.toml").is_file():
        return adapter.name
    return f"{folder.name}@{adapter.parent.name}" if folder != adapter.parent else f"{folder.name}/{adapter.name}"


def extend(run: Run, steps: int) -> None:
    """Give a run that has ended more steps; it goes on from its last checkpoint when it is started.

    Raises:
        UserError: it is at work, or has not begun.
    """
    view = runs.look(run)
    if view.status in runs.ACTIVE or not view.state.steps:
        raise UserError("This run cannot be given more steps now.", "Wait until it has ended.")
    config = run.config()
    training = config.training.model_copy(update={"steps": view.state.steps + steps})
    run.keep(config.model_copy(update={"training": training}))


def delete(run: Run) -> None:
    """Move a run to the bin `outputs/.bin`, where it stays for a week.

    Raises:
        UserError: it is at work.
    """
    if runs.look(run).status in runs.ACTIVE:
        raise UserError("This run is at work.", "Stop it first.")
    storage.discard(run.folder, paths.outputs() / storage.BIN / f"{run.id}.{time.time_ns()}")


def deleted() -> list[Path]:
    """Runs in the bin, the one deleted last first."""
    found = [one for one in (paths.outputs() / storage.BIN).glob("*.*") if (one / "config.toml").is_file()]
    return sorted(found, key=lambda one: one.suffix, reverse=True)


def restore_last() -> Run:
    """Bring back the run that was deleted last.

    Raises:
        UserError: there is none, or there is another one of its name.
    """
    found = deleted()
    if not found:
        raise UserError("There is no deleted run.", "Nothing has to be brought back.")
    folder = paths.outputs() / found[0].stem
    if folder.exists():
        raise UserError("There is a run of this name again.", "Rename that one first.")
    found[0].replace(folder)
    return Run(folder)


def rename(run: Run, name: str) -> Run:
    """Call a run by another name; its adapter file keeps the one that it has.

    Raises:
        UserError: it is at work, the name is none, or there is a run of this name that was begun in the same second.
    """
    if runs.look(run).status in runs.ACTIVE:
        raise UserError("This run is at work.", "Stop it first, or wait until it has ended.")
    begun = run.id[:17] if BEGUN.match(run.id) else f"{datetime.now():%Y-%m-%d_%H%M%S}"
    folder = paths.outputs() / f"{begun}_{paths.check_name(name.strip(), 'run')[:42]}"
    if folder.exists() and folder != run.folder:
        raise UserError("There is a run of this name already.", "Choose another name.")
    run.folder.replace(folder)
    return Run(folder)
