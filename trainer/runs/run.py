"""Run folders under `outputs/`: create, list, start, control, look at. The folder is the whole interface.

    config.toml     settings: written at creation and completed by the worker before step 1. After that only these
                    change: the steps, when the run is asked to cool down or is extended, and the learning rate, when
                    the instability guard restarts it
    events.jsonl    events that the worker reports
    worker.log      output of the worker
    worker.lock     held while a worker lives
    cluster         address of the cluster that the run is for; missing if it is for this machine
    ask/            empty files: stop, checkpoint, preview, cooldown (anyone writes, the worker removes), and pause,
                    which holds the worker after its current step for as long as it is there; start and hold while
                    it waits for its cards (see `queue`); process names the one that was started for it
    checkpoints/    for resuming
    adapters/       of checkpoints that were removed
    previews/       images
    <name>.safetensors
    peft/           the same in the format of PEFT and diffusers, if that was requested

State is derived from the log and the lock, never stored, so it is right after any crash.
"""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from trainer import config as configs
from trainer import extension, paths, storage
from trainer.base_models import MICRO, detect
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import events

Command = Literal["stop", "checkpoint", "preview", "cooldown"]
COMMANDS: tuple[Command, ...] = get_args(Command)
Status = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]
SETTINGS, LOG = "config.toml", "events.jsonl"
PAUSE = "pause"
HOLD = "hold"
PROCESS = "process"
CLUSTER = "cluster"
PAUSE_POLL = 0.2  # seconds between checks of whether a paused run may go on
ACTIVE: tuple[Status, ...] = ("waiting", "running")


class StopRequestedError(Exception):
    """The run was asked to stop while it was not in its training loop."""


@dataclass(frozen=True)
class Run:
    """One run folder. `listener` is called with each event that is logged (for the command line's progress).

    Of several processes of one run, one is the main process; the others only read the folder and write previews.
    """

    folder: Path
    listener: Callable[[events.Event], None] | None = field(default=None, compare=False)
    is_main: bool = True

    @property
    def id(self) -> str:
        """The folder's name, which names the run."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """Path of the event log."""
        return self.folder / LOG

    @property
    def lock(self) -> Path:
        """Path of the lock, held by the kernel for the worker as long as it lives."""
        return self.folder / "worker.lock"

    @property
    def config_file(self) -> Path:
        """Path of the settings."""
        return self.folder / SETTINGS

    def config(self) -> TrainConfig:
        """Read the settings."""
        return configs.load(self.config_file)

    @property
    def worker_log(self) -> Path:
        """File with the output of the worker."""
        return self.folder / "worker.log"

    @property
    def cluster(self) -> str:
        """Address of the cluster whose nodes work on the run; "" if it is for this machine."""
        try:
            return (self.folder / CLUSTER).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def report(self, event: events.Event) -> None:
        """Add an event to the log."""
        if not self.is_main:
            return
        events.append(self.log, event)
        if self.listener:
            self.listener(event)

    def warn(self, message: str, /, **values: object) -> None:
        """Add a warning to the log, which is translated here; with values it is a template, as in `i18n._`."""
        self.report(events.Warned(message=_(message, **values)))

    def save_config(self, config: TrainConfig) -> None:
        """Write the settings as they are from here on."""
        if self.is_main:
            storage.write(self.config_file, configs.dump(config))

    def take_request(self, command: Command) -> bool:
        """Return True if this was requested, and remove the request."""
        path = self.folder / "ask" / command
        if not self.is_main or not path.exists():
            return False
        storage.remove(path)
        return True

    @property
    def is_paused(self) -> bool:
        """True if the run is paused and not asked to stop, so that it waits after the current step."""
        asks = self.folder / "ask"
        return self.is_main and (asks / PAUSE).exists() and not (asks / "stop").exists()

    @property
    def on_hold(self) -> bool:
        """True if the run keeps its place in the queue without taking cards."""
        return (self.folder / "ask" / HOLD).exists()

    def progress(self, name: str, done: int, total: int) -> None:
        """Report progress of a phase, and end it if the run was asked to stop.

        Raises:
            StopRequestedError: it was asked to stop.
        """
        self.report(events.Phase(name=name, done=done, total=total))
        if self.take_request("stop"):
            raise StopRequestedError

    @property
    def export(self) -> Path:
        """Path of the finished adapter."""
        return self.folder / f"{self.config().name}.safetensors"


def create(config: TrainConfig, folder: Path | None = None, cluster: str = "") -> Run:
    """Create a run folder with its config; an existing one is never overwritten.

    Args:
        config: the settings; their record, if they come from another run, is cleared.
        folder: the folder to create; by default `outputs/<time>_<name>`.
        cluster: the address of a place to train elsewhere; "" = this machine.

    Raises:
        UserError: the folder is not empty, or no installed extension trains at this address.
    """
    if cluster:
        extension.place(cluster)
    config = _with_absolute_paths(config.model_copy(update={"record": configs.Record()}))
    if folder is None:
        folder = new_folder(paths.outputs(), config.name)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(
            "The run folder {name!r} already exists.",
            "Choose another one, or resume the run in it.",
            name=folder.name,
        )
    run = Run(folder)
    try:
        (folder / "ask").mkdir()
        if cluster:
            storage.write(folder / CLUSTER, cluster)
        run.save_config(config)
    except OSError:  # the disk is full
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def new_folder(root: Path, name: str) -> Path:
    """Create a folder that is named by the time and by what it is for; concurrent callers get different ones."""
    root.mkdir(parents=True, exist_ok=True)
    for candidate in paths.numbered(f"{datetime.now():%Y-%m-%d_%H%M%S}_{name}"[:60]):
        with suppress(FileExistsError):
            (root / candidate).mkdir()
            return root / candidate
    raise AssertionError("numbers do not end")


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Make relative paths absolute, so that the settings mean the same wherever the run is resumed."""

    def base(name: str) -> str:
        return name if name == MICRO else _absolute_file(name)

    return configs.with_paths(config, base=base, file=_absolute_file, dataset=_absolute_dataset)


def _absolute_file(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path and detect.is_here(path) else path


def _absolute_dataset(dataset: str) -> str:
    if not dataset or (paths.datasets() / dataset).is_dir():
        return dataset
    folder = Path(dataset).expanduser()
    return str(folder.resolve()) if folder.is_dir() else dataset


def short_address(cluster: str) -> str:
    """Return what tells a cluster from others in its address: without the command there, or what a run asks for."""
    scheme, mark, rest = cluster.rpartition("://")
    return scheme + mark + re.split("[/?]", rest, maxsplit=1)[0]


def find(run_id: str) -> Run:
    """Return the run of this name under `outputs/`.

    Raises:
        UserError: there is none.
    """
    folder = paths.outputs() / paths.check_name(run_id, "run")
    if not Run(folder).config_file.is_file():
        raise UserError("There is no run {run_id!r}.", "Reload the page.", run_id=run_id)
    return Run(folder)


def all_runs() -> list[Run]:
    """Return all runs under `outputs/`, the newest first."""
    root = paths.outputs()
    if not root.is_dir():
        return []
    folders = sorted(root.iterdir(), reverse=True)
    return [run for run in map(Run, folders) if paths.is_name(run.id) and run.config_file.is_file()]


def log_tail(run: Run, lines: int = 200) -> str:
    """Return the last lines that the worker printed."""
    try:
        with run.worker_log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 200 * lines))
            data = log.read()
    except FileNotFoundError:
        return ""
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])
