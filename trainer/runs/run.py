"""Run folders under `outputs/`: create, list, start, ask, look at. The folder is the whole interface.

    config.toml     settings: written at creation, completed by the worker before step 1; after that only what the run
                    itself decides on the way is written anew: its steps when asked to cool down, its learning rate
                    when the instability guard begins again; and its steps when a person wants more of them
    events.jsonl    what the worker reports
    worker.log      what the worker prints
    worker.lock     held while a worker lives
    ask/            empty files: stop, checkpoint, preview, cooldown (anybody writes, the worker removes), and pause,
                    which holds the worker after its present step for as long as it is there
    checkpoints/    what the run can be resumed from
    previews/       pictures
    <name>.safetensors
    peft/           the same in the form of PEFT and diffusers, if that was asked for

State is derived from the log and the lock, never stored, so it is right after any crash.
"""

import itertools
import os
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
from trainer import fault_injection, paths, storage
from trainer.base_models import MICRO, detect
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.runs import events

Command = Literal["stop", "checkpoint", "preview", "cooldown"]
COMMANDS: tuple[Command, ...] = get_args(Command)
Status = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]
PAUSE = "pause"
LOOKED_AT = 20  # runs among which one of the same kind is looked for
PATIENCE = 0.2  # seconds between looks whether a paused run goes on
GRACE = 30.0  # seconds in which a worker that was just started must take its lock
SILENCE = 60.0  # seconds that any worker may be silent between steps, for checkpoints and previews
SILENCE_AT_FIRST = 600.0  # the same before two steps are done
ANSWERED_WITHIN = 10.0  # seconds after which a run that was asked to stop, and did not hear it, may be ended
ENDS: dict[str, Status] = {"finished": "finished", "stopped": "stopped", "failed": "failed"}
ACTIVE: tuple[Status, ...] = ("waiting", "running")


class StopRequestedError(Exception):
    """Somebody asked the run to stop while it was not in its training loop."""


@dataclass(frozen=True)
class Run:
    """One run folder. `listener` hears each event beside the log (the command line's progress).

    Of several processes on one run, one leads; the others only read the folder, but for the previews that they draw.
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
            storage.write(self.config_file, configs.dump(config))

    def asked(self, command: Command) -> bool:
        """Tell whether this was requested, and remove the request."""
        path = self.folder / "ask" / command
        if not self.leads or not path.exists():
            return False
        path.unlink(missing_ok=True)
        return True

    @property
    def holds(self) -> bool:
        """Tell whether the run is paused and not asked to stop, so that it waits after the current step."""
        asks = self.folder / "ask"
        return self.leads and (asks / PAUSE).exists() and not (asks / "stop").exists()

    def progress(self, name: str, done: int, total: int) -> None:
        """Report a phase, and end it if the run was asked to stop.

        Raises:
            StopRequestedError: somebody asked.
        """
        self.report(events.Phase(name=name, done=done, total=total))
        fault_injection.phase()
        if self.asked("stop"):
            raise StopRequestedError

    @property
    def export(self) -> Path:
        """Return the path of the finished adapter."""
        return self.folder / f"{self.config().name}.safetensors"


@dataclass(frozen=True)
class View:
    """A run as it is now: its status, what its log says, and where to go on reading the log."""

    run: Run
    status: Status
    state: events.State
    offset: int = 0

    @property
    def paused(self) -> bool:
        """Tell whether the run is paused."""
        return self.status == "running" and (self.run.folder / "ask" / PAUSE).exists()

    @property
    def seconds_per_step(self) -> float | None:
        """Return the seconds per recent step, previews included; None if unknown."""
        return _pace(self.state.pace)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that are left at the pace of the last steps; None if unknown."""
        pace = self.seconds_per_step
        if self.status != "running" or self.paused or pace is None:
            return None
        return (self.state.steps - self.state.step) * pace

    @property
    def seconds_left_between(self) -> tuple[float, float] | None:
        """The least and the most seconds that are left, by the pace of the last 60 steps and by that of the last 15."""
        both = [_pace(self.state.pace), _pace(self.state.pace[-15:])]
        paces = [pace for pace in both if pace is not None]
        if self.seconds_left is None or not paces:
            return None
        left = self.state.steps - self.state.step
        return left * min(paces), left * max(paces)

    def silence(self, now: float) -> float:
        """Seconds at this Unix time for which a worker that has the device has said nothing; 0 if they are few.

        Many are ten steps' time and at least a minute; before two steps are done, when a base model may be read from a
        slow disk, ten minutes.
        """
        pace, updated = self.seconds_per_step, self.state.updated
        waits = self.status not in ACTIVE or self.paused or (self.run.folder / "ask" / "start").exists()
        if waits or not updated or (pace is None and len(self.state.pace) > 1):  # the clock was set back
            return 0.0
        silence = now - updated.timestamp()
        return silence if silence > (SILENCE_AT_FIRST if pace is None else max(SILENCE, 10 * pace)) else 0.0

    def is_silent(self, now: float) -> bool:
        """Tell whether at this Unix time the worker that has the device has been silent for long."""
        return self.silence(now) > 0

    def is_deaf(self, now: float) -> bool:
        """Tell whether at this Unix time the run has not responded to a stop request, or is silent."""
        try:
            asked = (self.run.folder / "ask" / "stop").stat().st_mtime
        except FileNotFoundError:
            return self.is_silent(now)
        return self.status in ACTIVE and now - asked > ANSWERED_WITHIN


def _pace(seen: Sequence[tuple[int, float]]) -> float | None:
    """Seconds a step between the first and the last (step, Unix time) of these.

    None if there are not two, or the clock was set back between them.
    """
    if len(seen) < 2 or seen[-1][1] < seen[0][1]:
        return None
    (first, begin), (last, end) = seen[0], seen[-1]
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
            "The run folder {name!r} exists already.",
            "Choose another one, or resume the run that is in it.",
            name=folder.name,
        )
    (folder / "ask").mkdir()
    run = Run(folder)
    run.keep(config)
    return run


def _new_folder(stem: str) -> Path:
    """A folder that is there for whoever made it alone: of several who ask at once each gets another one."""
    paths.outputs().mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = paths.outputs() / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _anchored(config: TrainConfig) -> TrainConfig:
    """The settings with relative paths made absolute, so that the run means the same wherever it is resumed."""
    base = config.model.base
    if base != MICRO and detect.is_here(base):
        model = config.model.model_copy(update={"base": str(Path(base).expanduser().resolve())})
        config = config.model_copy(update={"model": model})
    prior = config.prior.model_copy(update={"dataset": _absolute(config.prior.dataset)})
    return config.model_copy(update={"dataset": _absolute(config.dataset), "prior": prior})


def _absolute(dataset: str) -> str:
    folder = Path(dataset).expanduser()
    if not dataset:  # no data set; as a path it would be the folder we are in
        return dataset
    return dataset if (paths.datasets() / dataset).is_dir() or not folder.is_dir() else str(folder.resolve())


def find(run_id: str) -> Run:
    """The run of this name under `outputs/`.

    Raises:
        UserError: there is none.
    """
    folder = paths.outputs() / paths.check_name(run_id, "run")
    if not (folder / "config.toml").is_file():
        raise UserError("There is no run {run_id!r}.", "Reload the page to see which there are.", run_id=run_id)
    return Run(folder)


def every() -> list[Run]:
    """All runs under `outputs/`, the newest first."""
    root = paths.outputs()
    if not root.is_dir():
        return []
    folders = [one for one in root.iterdir() if paths.NAME.fullmatch(one.name) and (one / "config.toml").is_file()]
    return [Run(one) for one in sorted(folders, reverse=True)]


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
    if starting.exists() and abs(time.time() - starting.stat().st_mtime) < GRACE:  # not ahead of a clock set back
        return "waiting"
    return ENDS.get(state.end, "interrupted")


Executor = Callable[[Run], None]


def spawn(run: Run) -> None:
    """Start a worker for this run, detached: it lives on when this process, its page or its terminal ends."""
    with (run.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(  # an argument list, no shell
            [sys.executable, "-m", "trainer", "work", str(run.folder.resolve())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=paths.CODE, start_new_session=True,
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


def alike(config: TrainConfig) -> View | None:
    """The newest run on this machine whose steps cost what those of these settings do; None without one."""
    for run in every()[:LOOKED_AT]:
        try:
            view = look(run) if _cost(run.config()) == _cost(config) else None
        except UserError:  # of an older version, or broken
            continue
        if view and view.seconds_per_step:
            return view
    return None


def _cost(config: TrainConfig) -> tuple[object, ...]:
    """Return the settings that the time of a step depends on."""
    training, adapter = config.training, config.adapter
    return (
        config.model.base, config.model.weights, training.resolution, training.batch_size, training.accumulation,
        training.devices, training.text_encoder, adapter.kind, adapter.targets, config.preservation.share,
    )  # fmt: skip


def ask(run: Run, command: Command) -> None:
    """Ask the worker for something; it looks after each step."""
    (run.folder / "ask").mkdir(exist_ok=True)
    (run.folder / "ask" / command).touch()


def pause(run: Run, *, go_on: bool = False) -> None:
    """Hold a run after its present step, with all that it has in memory, or let it go on."""
    path = run.folder / "ask" / PAUSE
    if go_on:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.touch()


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
