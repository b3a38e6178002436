"""Run folders under `outputs/`: create, list, start, ask, look at, delete. The folder is the whole interface.

    config.toml     settings: written at creation, completed by the worker before step 1; after that only what the run
                    itself decides on the way is written anew: its steps when asked to cool down, its learning rate
                    when the instability guard begins again
    events.jsonl    what the worker reports
    worker.log      what the worker prints
    worker.lock     held while a worker lives
    ask/            empty files: stop, checkpoint, preview, cooldown (anybody writes, the worker removes)
    checkpoints/    what the run can be resumed from
    previews/       pictures
    <name>.safetensors
    peft/           the same in the form of PEFT and diffusers, if that was asked for

State is derived from the log and the lock, never stored, so it is right after any crash.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from trainer import config as configs
from trainer import detect, events, files
from trainer.config import TrainConfig
from trainer.errors import UserError

Command = Literal["stop", "checkpoint", "preview", "cooldown"]
COMMANDS: tuple[Command, ...] = get_args(Command)
Status = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]
DEVICE_LOCK = ".device.lock"
LOOKED_AT = 20  # runs among which one of the same kind is looked for
GRACE = 30.0  # seconds in which a worker that was just started must take its lock
SILENCE = 60.0  # seconds that any worker may be silent between steps, for checkpoints and previews
ENDS: dict[str, Status] = {"finished": "finished", "stopped": "stopped", "failed": "failed"}
ACTIVE: tuple[Status, ...] = ("waiting", "running")


class StopRequestedError(Exception):
    """Somebody asked the run to stop while it was not in its training loop."""


@dataclass(frozen=True)
class Run:
    """One run folder. `listener` hears each event beside the log (the command line's progress).

    Of several processes on one run, one leads; for the others the folder is there to be read only.
    """

    folder: Path
    listener: Callable[[events.Event], None] | None = field(default=None, compare=False)
    leads: bool = True

    @property
    def id(self) -> str:
        """The folder's name, which names the run."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """The events."""
        return self.folder / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the kernel for the worker as long as it lives."""
        return self.folder / "worker.lock"

    @property
    def config_file(self) -> Path:
        """The settings."""
        return self.folder / "config.toml"

    def config(self) -> TrainConfig:
        """The settings as they stand in the folder."""
        return configs.load(self.config_file)

    def report(self, event: events.Event) -> None:
        """Add an event to the log."""
        if not self.leads:
            return
        events.append(self.log, event)
        if self.listener:
            self.listener(event)

    def keep(self, config: TrainConfig) -> None:
        """Write down the settings as they are from here on."""
        if self.leads:
            files.write(self.config_file, configs.dump(config))

    def asked(self, command: Command) -> bool:
        """Whether somebody asked for this; the question is taken away with it."""
        path = self.folder / "ask" / command
        if not self.leads or not path.exists():
            return False
        path.unlink(missing_ok=True)
        return True

    def progress(self, name: str, done: int, total: int) -> None:
        """Report a phase, and end it if the run was asked to stop.

        Raises:
            StopRequestedError: somebody asked.
        """
        self.report(events.Phase(name=name, done=done, total=total))
        if self.asked("stop"):
            raise StopRequestedError

    @property
    def export(self) -> Path:
        """Where the finished adapter lies."""
        return self.folder / f"{self.config().name}.safetensors"


@dataclass(frozen=True)
class View:
    """A run as it is now: its status, what its log says, and where to go on reading the log."""

    run: Run
    status: Status
    state: events.State
    offset: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that are left at the pace of the last steps, previews between them included; None if unknown."""
        pace = self.state.pace
        if self.status != "running" or len(pace) < 2:
            return None
        return (self.state.steps - pace[-1][0]) * _seconds_a_step(pace)

    def is_silent(self, now: float) -> bool:
        """Whether at this Unix time a worker that trained says nothing for ten steps' time, and at least a minute."""
        pace, updated = self.state.pace, self.state.updated
        if self.status != "running" or len(pace) < 2 or not updated:
            return False
        return now - updated.timestamp() > max(SILENCE, 10 * _seconds_a_step(pace))


def _seconds_a_step(pace: Sequence[tuple[int, float]]) -> float:
    (first, begin), (last, end) = pace[0], pace[-1]
    return (end - begin) / max(1, last - first)


def create(config: TrainConfig, folder: Path | None = None) -> Run:
    """Make a new run folder with its config; an existing one is never written over.

    Args:
        config: the settings; their record, if they come from another run, is left out.
        folder: where; by default `outputs/<time>_<name>`.

    Raises:
        UserError: the folder exists already.
    """
    config = _anchored(config.model_copy(update={"record": configs.Record()}))
    if folder is None:
        folder = _new_folder(f"{datetime.now():%Y-%m-%d_%H%M%S}_{config.name}"[:60])
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(
            f"The run folder {folder.name!r} exists already.", "Choose another one, or resume the run that is in it."
        )
    (folder / "ask").mkdir()
    run = Run(folder)
    run.keep(config)
    return run


def _new_folder(stem: str) -> Path:
    """A folder that is there for whoever made it alone: of several who ask at once each gets another one."""
    files.outputs().mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = files.outputs() / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _anchored(config: TrainConfig) -> TrainConfig:
    """The settings with relative paths made absolute, so that the run means the same wherever it is resumed."""
    base = config.model.base
    if base != configs.MICRO and detect.is_here(base):
        model = config.model.model_copy(update={"base": str(Path(base).expanduser().resolve())})
        config = config.model_copy(update={"model": model})
    prior = config.prior.model_copy(update={"dataset": _absolute(config.prior.dataset)})
    return config.model_copy(update={"dataset": _absolute(config.dataset), "prior": prior})


def _absolute(dataset: str) -> str:
    folder = Path(dataset).expanduser()
    if not dataset:  # no data set; as a path it would be the folder we are in
        return dataset
    return dataset if (files.datasets() / dataset).is_dir() or not folder.is_dir() else str(folder.resolve())


def find(run_id: str) -> Run:
    """The run of this name under `outputs/`.

    Raises:
        UserError: there is none.
    """
    folder = files.outputs() / files.check_name(run_id, "run")
    if not (folder / "config.toml").is_file():
        raise UserError(f"There is no run {run_id!r}.", "Reload the page to see which there are.")
    return Run(folder)


def every() -> list[Run]:
    """All runs under `outputs/`, the newest first."""
    root = files.outputs()
    if not root.is_dir():
        return []
    folders = [one for one in root.iterdir() if files.NAME.fullmatch(one.name) and (one / "config.toml").is_file()]
    return [Run(one) for one in sorted(folders, reverse=True)]


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock."""
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
    """The run as it is now. With the last view of it, only what is new in the log is read."""
    known = before if before and before.run == run else None
    # The lock is looked at first: a worker that ends in between has written its last event by then.
    locked = is_locked(run.lock)
    fresh, offset = events.read(run.log, known.offset if known else 0)
    state = events.fold(known.state if known else events.State(), fresh)
    return View(run, _status(run, state, locked), state, offset)


def _status(run: Run, state: events.State, locked: bool) -> Status:
    starting = run.folder / "ask" / "start"  # there from the start until the worker has the device
    if locked:
        return "running" if state.started and not state.end and not starting.exists() else "waiting"
    if starting.exists() and time.time() - starting.stat().st_mtime < GRACE:
        return "waiting"
    return ENDS.get(state.end, "interrupted")


Executor = Callable[[Run], None]


def spawn(run: Run) -> None:
    """Start a worker for this run, detached: it lives on when this process, its page or its terminal ends."""
    with (run.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(  # an argument list, no shell
            [sys.executable, "-m", "trainer", "work", str(run.folder.resolve())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=Path(__file__).parent.parent, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay as a zombie


def start(run: Run, executor: Executor = spawn) -> None:
    """Start or resume a run; it waits by itself until the device is free.

    Raises:
        UserError: it is at work already.
    """
    if look(run).status in ACTIVE:
        raise UserError("This run is at work already.", "Watch it, or stop it first.")
    asks = run.folder / "ask"
    asks.mkdir(exist_ok=True)
    for old in asks.iterdir():
        old.unlink(missing_ok=True)
    (asks / "start").touch()
    executor(run)


def seconds_per_step(config: TrainConfig) -> float | None:
    """How long a step took, previews included, in the newest run of this kind on this machine; None without one."""
    for run in every()[:LOOKED_AT]:
        try:
            alike = _cost(run.config()) == _cost(config)
        except UserError:  # of an older version, or broken
            continue
        pace = look(run).state.pace if alike else ()
        if len(pace) > 1:
            return _seconds_a_step(pace)
    return None


def _cost(config: TrainConfig) -> tuple[object, ...]:
    """What a step's time depends on, of all settings."""
    training, adapter = config.training, config.adapter
    return (
        config.model.base, config.model.weights, training.resolution, training.batch_size, training.accumulation,
        training.devices, training.text_encoder, adapter.kind, adapter.targets, config.preservation.share,
    )  # fmt: skip


def ask(run: Run, command: Command) -> None:
    """Ask the worker for something; it looks after each step."""
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / command).touch()


def kill(run: Run) -> None:
    """End a worker that does not answer; the run can be resumed then. Its number is trusted while its lock is held."""
    number = look(run).state.pid
    if number and is_locked(run.lock):
        os.kill(number, getattr(signal, "SIGKILL", signal.SIGTERM))


def hold(run: Run) -> FileLock:
    """Take the lock of a run for the rest of this process's life.

    Raises:
        UserError: another worker has it.
    """
    # A look at the lock takes it for an instant, hence the patience.
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise UserError(f"The run {run.id!r} is at work already.", "Watch it, or stop it first.") from None
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / "start").touch()
    return lock


def wait_for_device(run: Run) -> FileLock:
    """Wait until it is this run's turn for the device: one run at a time, the oldest waiting one first.

    Raises:
        StopRequestedError: somebody asked the run to stop while it waited.
    """
    files.outputs().mkdir(parents=True, exist_ok=True)
    lock = FileLock(files.outputs() / DEVICE_LOCK)
    while True:
        if not _older_waiting(run):
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                pass
            else:
                (run.folder / "ask" / "start").unlink(missing_ok=True)
                return lock
        if run.asked("stop"):
            raise StopRequestedError
        time.sleep(0.3)


def _older_waiting(run: Run) -> bool:
    if run.folder.parent.resolve() != files.outputs().resolve():
        return False
    return any(other.id < run.id and is_locked(other.lock) and look(other).status == "waiting" for other in every())


def place(run: Run) -> int:
    """Place of a waiting run in the queue, 1 = next."""
    return 1 + sum(1 for other in every() if other.id < run.id and look(other).status == "waiting")


def delete(run: Run) -> None:
    """Move a run to the bin `outputs/.bin`.

    Raises:
        UserError: it is at work.
    """
    if look(run).status in ACTIVE:
        raise UserError("This run is at work.", "Stop it first.")
    bin_folder = files.outputs() / ".bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    run.folder.replace(bin_folder / f"{run.id}.{os.urandom(3).hex()}")


def log_tail(run: Run, lines: int = 200) -> str:
    """The last lines that the worker printed."""
    try:
        with (run.folder / "worker.log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 200 * lines))
            data = log.read()
    except FileNotFoundError:
        return ""
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])
