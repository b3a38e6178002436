"""Runs that have ended: extend, repeat, rename, delete and restore them; and display names of their files."""

import json
import re
from datetime import datetime
from pathlib import Path

from trainer import config, paths, runs, storage
from trainer.config import base_notes
from trainer.errors import Change, UserError, explaining_files_in_use
from trainer.runs import Run, checkpoints

START_TIME = re.compile(r"\d{4}-\d{2}-\d{2}_\d{6}_")  # prefix of a run's name


def display_name(adapter: Path) -> str:
    """Return the name of an adapter file with that of its run, without where on this machine it lies."""
    folder, step = adapter.parent, ""
    if adapter.parent.parent.name == checkpoints.FOLDER:
        folder, step = adapter.parents[2], adapter.parent.name
    elif adapter.parent.name == checkpoints.KEPT:
        folder, step = adapter.parents[1], adapter.stem
    if not Run(folder).config_file.is_file():
        return adapter.name
    return f"{folder.name}@{step}" if step else f"{folder.name}/{adapter.name}"


def extend(run: Run, steps: int) -> None:
    """Give a run that has ended more steps; it goes on from its last checkpoint when it is started.

    It takes all of them, also if the held-out loss had ended it.

    Raises:
        UserError: it is running, never started, or its base model is gone.
    """
    view = runs.look(run)
    if view.status in runs.ACTIVE or not view.state.steps:
        raise UserError("This run cannot be extended now.", "Wait until it has ended.")
    settings = run.config()
    base_notes.check(settings)
    training = settings.training.model_copy(update={"steps": view.state.steps + steps})
    held_out = settings.held_out.model_copy(update={"patience": 0})
    run.save_config(settings.model_copy(update={"training": training, "held_out": held_out}))


def again(run: Run, change: Change | None = None) -> Run:
    """Create a run with the settings of one that has ended, and changes to them by path.

    Raises:
        UserError: it is active, or its settings cannot be read.
    """
    runs.check_ended(run)
    data = run.config().model_dump(mode="json", exclude={"record"})
    assignments = [f"{path}={json.dumps(value)}" for path, value in (change or {}).items()]
    return runs.create(config.build(config.override(data, assignments)), cluster=run.cluster)


def delete(run: Run) -> None:
    """Move a run to the bin `outputs/.bin`, where it stays for a week.

    Raises:
        UserError: it is running.
    """
    runs.check_ended(run)
    with explaining_files_in_use():
        storage.move_to_bin(run.folder, paths.outputs())


def deleted() -> list[Path]:
    """Return the runs in the bin, the one deleted last first."""
    return [folder for folder in storage.binned(paths.outputs()) if Run(folder).config_file.is_file()]


def restore_last() -> Run:
    """Bring back the run that was deleted last.

    Raises:
        UserError: there is none, or its name is taken by another run.
    """
    run_folders = deleted()
    if not run_folders:
        raise UserError("There is no deleted run.", "Nothing has to be brought back.")
    folder = paths.outputs() / run_folders[0].stem
    if folder.exists():
        raise UserError("Another run has this name by now.", "Rename that one first.")
    with explaining_files_in_use():
        storage.replace(run_folders[0], folder)
    return Run(folder)


def rename(run: Run, name: str) -> Run:
    """Rename a run; its adapter file keeps its name.

    Raises:
        UserError: it is running, the name is invalid, or a run of this name was created in the same second.
    """
    runs.check_ended(run)
    created = run.id[:17] if START_TIME.match(run.id) else f"{datetime.now():%Y-%m-%d_%H%M%S}"
    folder = paths.outputs() / f"{created}_{paths.check_name(name.strip(), 'run')[:42]}"
    if folder.exists() and folder != run.folder:
        raise UserError("There is already a run of this name.", "Choose another name.")
    with explaining_files_in_use():
        storage.replace(run.folder, folder)
    return Run(folder)
